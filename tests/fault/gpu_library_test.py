#!/usr/bin/env python3
"""A GPU that is imagined: what it computes in, and matrix products' library, which is loaded when a GPU is opened: what
runs without it, what is said where it is needed."""
import glob
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../e2e"))
import rig  # noqa: E402
from rig import Job, equal  # noqa: E402


def names(pattern):
    """Of the program's strings, those of a form."""
    return sorted({found.decode() for found in re.findall(rb"\0(%s)(?=\0)" % pattern, rig.read_bytes(Job.worker))})


def compile_object(path, *source):
    done = subprocess.run(["cc", "-shared", "-fPIC", "-o", path, *source], capture_output=True, text=True)
    equal((done.returncode, done.stderr), (0, ""))


class Machine:
    """A job on a GPU that is imagined, where `folder` is looked through for libraries first."""

    def __init__(self, root):
        self.folder = os.path.join(root, "lib")
        self.gpu = os.path.join(root, "fake_gpu.so")
        (name,) = names(rb"libcublasLt\.so\.\d+")
        self.library = os.path.join(self.folder, name)
        self.job = Job(root, resources={"device": "gpu"})
        self.job.env["LD_LIBRARY_PATH"] = self.folder
        os.makedirs(self.folder)
        compile_object(self.gpu, os.path.join(HERE, "fake_gpu.c"))

    def message(self):
        """What the job fails with."""
        self.job.env["LD_PRELOAD"] = self.gpu
        equal(self.job.run().returncode, 1)
        end = self.job.end()
        equal((end["type"], end["code"]), ("failed", "device"))
        return end["message"]


def runs_on_the_cpu_without_it(root):
    """Where it cannot be loaded a job is planned and trained on the CPU."""
    machine = Machine(root)
    open(machine.library, "w").close()
    equal(machine.job.run("--devices").returncode, 0)
    machine.job.spec["resources"]["device"] = "cpu"
    rig.write_json(machine.job.path("spec.json"), machine.job.spec)
    equal(machine.job.plan()[0], 0)
    equal(machine.job.run().returncode, 0)
    equal(machine.job.end()["type"], "finished")


def is_named_where_it_cannot_be_loaded(root):
    machine = Machine(root)
    open(machine.library, "w").close()
    message = machine.message()
    for words in (os.path.basename(machine.library), "too short", "install", "LD_LIBRARY_PATH"):
        assert words in message, message


def lacking_functions_are_named(root):
    machine = Machine(root)
    source = os.path.join(root, "empty.c")
    with open(source, "w") as f:
        f.write("int cublasLtCreate(void **handle);\nint cublasLtCreate(void **handle) { return 1; }\n")
    compile_object(machine.library, source)
    message = machine.message()
    assert re.search(r"no function cublasLt(?!Create\b)\w+", message) and "install" in message, message


def its_functions_are_called(root):
    """Of a library that has them all, and refuses: what it says is in the error. A preloaded object's come first."""
    machine = Machine(root)
    source = os.path.join(root, "all.c")

    def library(path, answer, others):
        with open(source, "w") as f:
            f.write("int cublasLtCreate(void **handle) { return 1; }\n"
                    'const char *cublasLtGetStatusString(int status) { return status == 1 ? "%s" : ""; }\n' % answer)
            for name in others:
                f.write("void %s(void) {}\n" % name)
        compile_object(path, source)

    library(machine.library, "refused by the library",
            set(names(rb"cublasLt[A-Z]\w+")) - {"cublasLtCreate", "cublasLtGetStatusString"})
    message = machine.message()
    assert "imaginary GPU 0" in message and "refused by the library" in message, message
    before = os.path.join(root, "before.so")
    library(before, "refused before the library", ())
    machine.gpu += ":" + before
    assert "refused before the library" in machine.message(), machine.message()


def without_bf16_a_job_computes_in_fp16(root):
    """By compute capability, before the GPU is opened."""
    machine = Machine(root)
    job = machine.job
    job.env["LD_PRELOAD"] = machine.gpu
    path = os.path.join(job.env["XDG_CACHE_HOME"], "castor", "profile-cuda.json")
    os.makedirs(os.path.dirname(path))
    rig.write_json(path, rig.IMAGINARY_GPU)
    for capability, compute in (("7", "fp16"), ("8", "bf16"), ("9", "bf16")):
        job.env["FAKE_CAPABILITY"] = capability
        code, report = job.plan()
        equal((code, report["spec"]["precision"]["compute"]), (0, compute))


def all_kernels_are_loaded_when_a_gpu_is_opened(root):
    """Of each file of kernels, before the library is: an opening that ends there has loaded them."""
    machine = Machine(root)
    open(machine.library, "w").close()
    loaded = os.path.join(root, "loaded")
    machine.job.env["FAKE_LOADED"] = loaded
    machine.message()
    kernels = rig.read_bytes(loaded).split()
    equal(len(set(kernels)), len(kernels))
    equal(len(kernels), 3 * len(glob.glob(os.path.join(HERE, "../../kernels/cuda/*.cu"))))


CASES = [all_kernels_are_loaded_when_a_gpu_is_opened, without_bf16_a_job_computes_in_fp16, runs_on_the_cpu_without_it, is_named_where_it_cannot_be_loaded, lacking_functions_are_named, its_functions_are_called]

if __name__ == "__main__":
    rig.main(CASES, __doc__)
