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
 */
#ifndef CASTOR_WORKER_TRAIN_CORES_H
#define CASTOR_WORKER_TRAIN_CORES_H

#include <sched.h>

#include <sched.h>

#include "kernels/device.h"

/* Let this process run on the device's part alone: the calling thread and those that it starts from
 * now on, so their memory comes from that node, too. A CPU has no part. Never fails: what the
 * system refuses stays as it was. */
void cores_take(const struct device *d);

/* The part of the GPU with that address, of what is `usable`; below `root` lie proc and sys. */
void cores_part(const char *root, const char *address, const cpu_set_t *usable, cpu_set_t *out);

#endif
