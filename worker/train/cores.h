/*
 * The processors of a GPU's job. Jobs on one host would all bind their update threads to the same
 * processors, and a job whose memory lies on another NUMA node than its GPU copies slower: so the
 * processors next to a GPU are parted evenly among the GPUs that are next to them, by the order of
 * their addresses on the bus. Whoever has the GPU has its part, with nothing to claim or give back.
 *
 * Which GPUs there are says the driver (/proc/driver/nvidia/gpus, which in a container lists those
 * that it was given), and what is next to one the kernel (/sys/bus/pci/devices/ADDRESS/
 * local_cpulist). Where either is silent, or a part would be less than two processors, a job has
 * all that the process may use.
 *
 * Memory follows the processors. Any thread may update any piece of a chunk, and whichever thread
 * fetches a page first decides on its node: so where the part's processors are of several nodes
 * (/sys/devices/system/node), as a CPU's are on a server of two sockets, the pages of what is
 * allocated from then on take turns among these nodes, and every chunk is read and written through
 * all of their memory controllers at a time. Where they are of one node pages come from there, as
 * they do by themselves (pinned ones too, since the threads that fetch those have the same
 * processors), and from another one only when that is full.
 */
#ifndef CASTOR_WORKER_TRAIN_CORES_H
#define CASTOR_WORKER_TRAIN_CORES_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"

/* Let this process run on the device's part alone, a CPU's being all of them, and take its memory
 * from there: the calling thread and those that it starts from now on. Never fails: what the system
 * refuses stays as it was. */
void cores_take(const struct device *d);

/* The part of the GPU with that address, of what is `usable`; below `root` lie proc and sys. */
void cores_part(const char *root, const char *address, const cpu_set_t *usable, cpu_set_t *out);

/* Bit n: node n. Of more nodes none is known. */
enum { CORES_MAX_NODES = 64 };
/* The nodes of these processors; 0 when nothing is known. */
uint64_t cores_nodes(const char *root, const cpu_set_t *processors);
/* Pages that the calling thread, and those that it starts from now on, fetch first take turns among
 * these nodes. False where the system refuses. */
bool cores_spread_pages(uint64_t nodes);

#endif
