#!/usr/bin/env python3
"""Checks the fixture hub with the real huggingface_hub client, and our cache against its cache.

    python3 tests/hub/check_fixture.py [--build BUILD]

Needs huggingface_hub. With --build, the folder where make put its archives, a small program is
linked from them, and each client must find offline what the other one has downloaded. The last
line is `N passed, N failed`.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent


def make_repositories(root):
    """A few models and data sets with the kinds of files that matter here."""

    def put(repo, files):
        for name, content in files.items():
            path = root / ("" if repo.startswith("datasets/") else "models") / repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    config, weights = b'{"model_type": "llama"}', os.urandom(3_000_000)
    put("org/tiny", {"config.json": config, "tokenizer.json": b"{}", "model.safetensors": weights})
    put("org/tiny", {"README.md": b"# Tiny\n", "onnx/model.onnx": b"onnx", "sub/a b+c.txt": b"x"})
    put("org/tiny@refs%2Fpr%2F1", {"config.json": b"{}", "model.safetensors": weights[:1000]})
    shards = {f"model-0000{i}-of-00002.safetensors": os.urandom(400_000) for i in (1, 2)}
    weight_map = {f"layer.{i}": name for i, name in enumerate(shards)}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    put("org/sharded", {**shards, "config.json": config, "model.safetensors.index.json": index})
    put("org/gated", {"config.json": config, "model.safetensors": b"weights"})
    put("org/private", {"config.json": config, "model.safetensors": b"weights"})
    put("datasets/org/data", {"README.md": b"---\nlicense: mit\n---\n"})
    for split, n in (("train", 2), ("test", 1)):
        for i in range(n):
            name = f"data/{split}-{i:05d}-of-{n:05d}.parquet"
            put("datasets/org/data", {name: b"PAR1" + os.urandom(1000)})
    put("datasets/org/data@refs%2Fconvert%2Fparquet", {"default/train/0000.parquet": b"PAR1"})
    put("datasets/org/lines", {"train.jsonl": b"{}\n", "dev.jsonl": b"{}\n"})
    hub = {
        "tokens": {"hf_granted": {"gated": True}, "hf_other": {"gated": False}},
        "gated": {"org/gated": "manual", "datasets/org/lines": "auto"},
        "private": ["org/private"],
        "renamed": {"old": "org/tiny"},
    }
    (root / "hub.json").write_text(json.dumps(hub))


TRAIN = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]


class Checks:
    """Each method check_* is one check."""

    def __init__(self, work, endpoint, fetch_model):
        self.work, self.endpoint, self.program = work, endpoint, fetch_model
        self.root = work / "root" / "models"
        self.data = work / "root" / "datasets"
        self.caches = 0

    def new_cache(self):
        self.caches += 1
        return str(self.work / f"cache-{self.caches}")

    def run(self, command, cache, offline):
        offline = "1" if offline else "0"
        env = {**os.environ, "HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": offline}
        result = subprocess.run(command, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
        return Path(result.stdout.strip())

    def ours(self, cache, reference, want="weights", offline=False):
        return self.run([self.program, reference, want], cache, offline)

    def theirs_offline(self, cache, code):
        """In a process of its own: huggingface_hub reads the environment when it is imported."""
        text = f"from huggingface_hub import *\nprint({code})"
        return self.run([sys.executable, "-c", text], cache, offline=True)

    def same(self, folder, repo, names, root=None):
        for name in names:
            expected = ((root or self.root) / repo / name).read_bytes()
            assert (Path(folder) / name).read_bytes() == expected, name

    def requests(self):
        with urllib.request.urlopen(self.endpoint + "/_fixture/log") as answer:
            return json.load(answer)

    # --- the fixture and the real client --------------------------------------------------------

    def check_snapshot_download(self):
        folder = hh.snapshot_download("org/tiny", cache_dir=self.new_cache())
        names = ["config.json", "model.safetensors", "onnx/model.onnx", "sub/a b+c.txt"]
        self.same(folder, "org/tiny", names)

    def check_single_file_and_other_revision(self):
        args = {"cache_dir": self.new_cache(), "revision": "refs/pr/1"}
        path = hh.hf_hub_download("org/tiny", "model.safetensors", **args)
        assert Path(path).stat().st_size == 1000

    def check_renamed_repository(self):
        path = hh.hf_hub_download("old", "config.json", cache_dir=self.new_cache())
        assert Path(path).read_bytes() == (self.root / "org/tiny/config.json").read_bytes()

    def check_info_and_paths(self):
        info = hh.HfApi().model_info("org/tiny", files_metadata=True)
        sizes = {s.rfilename: s.size for s in info.siblings}
        assert sizes["model.safetensors"] == 3_000_000, sizes
        (found,) = hh.HfApi().get_paths_info("org/tiny", ["model.safetensors"])
        assert found.lfs.size == 3_000_000
        refs = hh.HfApi().list_repo_refs("org/tiny")
        assert {b.name for b in refs.branches} == {"main", "refs/pr/1"}

    def check_errors(self):
        for repo, token, expected in [
            ("org/none", None, hh.errors.RepositoryNotFoundError),
            ("org/private", None, hh.errors.RepositoryNotFoundError),
            ("org/gated", None, hh.errors.GatedRepoError),
            ("org/gated", "hf_other", hh.errors.GatedRepoError),
        ]:
            try:
                args = {"cache_dir": self.new_cache(), "token": token}
                hh.hf_hub_download(repo, "config.json", **args)
            except expected:
                continue
            raise AssertionError(f"{repo} with token {token} was not refused")
        for kind, args in [
            (hh.errors.RevisionNotFoundError, {"revision": "v9"}),
            (hh.errors.EntryNotFoundError, {}),
        ]:
            try:
                hh.hf_hub_download("org/tiny", "none.json", cache_dir=self.new_cache(), **args)
            except kind:
                continue
            raise AssertionError(f"no {kind.__name__}")

    def check_token_stays_with_the_hub(self):
        args = {"cache_dir": self.new_cache(), "token": "hf_granted"}
        folder = hh.snapshot_download("org/gated", **args)
        self.same(folder, "org/gated", ["config.json", "model.safetensors"])
        log = self.requests()
        assert any(r["server"] == "store" for r in log)
        assert not any(r["server"] == "store" and r["authorized"] for r in log)

    def check_data_sets(self):
        args = {"repo_type": "dataset", "cache_dir": self.new_cache()}
        folder = hh.snapshot_download("org/data", **args)
        self.same(folder, "org/data", TRAIN + ["README.md"], self.data)
        info = hh.HfApi().dataset_info("org/data", files_metadata=True)
        assert {s.rfilename for s in info.siblings} >= set(TRAIN), info
        tree = hh.HfApi().list_repo_tree("org/data", "data", repo_type="dataset")
        assert {e.path for e in tree} >= set(TRAIN)
        path = hh.hf_hub_download("org/data", "default/train/0000.parquet", revision="refs/convert/parquet", **args)
        assert Path(path).read_bytes() == b"PAR1"
        for token in (None, "hf_other"):
            try:
                hh.hf_hub_download("org/lines", "train.jsonl", token=token, **args)
            except hh.errors.GatedRepoError:
                continue
            raise AssertionError("a gated data set was not refused")

    # --- our cache and theirs -------------------------------------------------------------------

    def check_ours_is_read_by_theirs(self):
        cache = self.new_cache()
        folder = self.ours(cache, "org/tiny")
        names = ["config.json", "tokenizer.json", "model.safetensors"]
        self.same(folder, "org/tiny", names)
        for name in names:
            path = self.theirs_offline(cache, f"hf_hub_download('org/tiny', {name!r})")
            assert path == folder / name, (path, folder)
        found = self.theirs_offline(cache, f"snapshot_download('org/tiny', allow_patterns={names})")
        assert found == folder, found

    def check_ours_is_a_whole_snapshot_for_theirs(self):
        cache = self.new_cache()
        folder = self.ours(cache, "org/sharded")
        assert self.theirs_offline(cache, "snapshot_download('org/sharded')") == folder

    def check_theirs_adds_to_ours(self):
        cache = self.new_cache()
        folder = self.ours(cache, "org/tiny", "metadata")
        assert Path(hh.snapshot_download("org/tiny", cache_dir=cache)) == folder
        self.same(folder, "org/tiny", ["README.md", "model.safetensors", "config.json"])

    def check_ours_says_what_is_missing(self):
        cache = self.new_cache()
        folder = self.ours(cache, "org/sharded")
        known = [hh.try_to_load_from_cache("org/sharded", name, cache_dir=cache)
                 for name in ("vocab.json", "config.json", "never_asked_for.json")]
        assert known == [hh._CACHED_NO_EXIST, str(folder / "config.json"), None], known

    def check_scan_of_ours_has_no_warnings(self):
        cache = self.new_cache()
        self.ours(cache, "org/tiny")
        self.ours(cache, "org/tiny@refs/pr/1")
        report = hh.scan_cache_dir(cache)
        assert not report.warnings, report.warnings
        (repo,) = report.repos
        assert repo.refs.keys() == {"main", "refs/pr/1"}, repo.refs

    def check_theirs_is_read_by_ours(self):
        for reference in ["org/tiny@main", "org/sharded@main", "org/tiny@refs/pr/1"]:
            repo, revision = reference.split("@")
            cache = self.new_cache()
            folder = hh.snapshot_download(repo, revision=revision, cache_dir=cache)
            found = self.ours(cache, reference, offline=True)
            assert str(found) == folder, (found, folder)

    def check_data_of_ours_is_read_by_theirs(self):
        cache = self.new_cache()
        folder = self.ours(cache, "hf://datasets/org/data", "train")
        self.same(folder, "org/data", TRAIN, self.data)
        for name in TRAIN:
            found = self.theirs_offline(cache, f"hf_hub_download('org/data', {name!r}, repo_type='dataset')")
            assert found == folder / name, (found, folder)
        report = hh.scan_cache_dir(cache)
        assert not report.warnings, report.warnings
        (repo,) = report.repos
        assert (repo.repo_id, repo.repo_type) == ("org/data", "dataset"), repo

    def check_data_of_theirs_is_read_by_ours(self):
        args = {"repo_type": "dataset", "cache_dir": self.new_cache()}
        folder = hh.snapshot_download("org/data", **args)
        assert str(self.ours(args["cache_dir"], "hf://datasets/org/data", "test", offline=True)) == folder
        args["cache_dir"] = self.new_cache()
        for name in TRAIN:
            path = hh.hf_hub_download("org/data", name, **args)
        found = self.ours(args["cache_dir"], "hf://datasets/org/data", "train", offline=True)
        assert found == Path(path).parent.parent, (found, path)

    def check_single_files_of_theirs_are_read_by_ours(self):
        cache = self.new_cache()
        for name in ["config.json", "model.safetensors"]:
            path = hh.hf_hub_download("org/tiny", name, cache_dir=cache)
        found = self.ours(cache, "org/tiny", offline=True)
        assert found == Path(path).parent, (found, path)

    def check_ours_adds_to_theirs(self):
        cache = self.new_cache()
        hh.hf_hub_download("org/tiny", "config.json", cache_dir=cache)
        folder = self.ours(cache, "hf://org/tiny@main")
        self.same(folder, "org/tiny", ["config.json", "tokenizer.json", "model.safetensors"])


def build_program(build, work):
    program = work / "fetch"
    libs = [str(Path(build) / "lib" / f"lib{name}.a") for name in ("worker_hub", "api", "core")]
    source = HERE / "fetch.c"
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", f"-I{TOP}", "-o", program, source, *libs]
    subprocess.run([*map(str, command), "-lcurl", "-lyaml", "-ljansson", "-lnettle", "-lm"], check=True)
    return str(program)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", help="make's build folder; without it our client is left out")
    args = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_repositories(work / "root")
        command = [sys.executable, HERE / "fixture_hub.py", "--root", work / "root", "--port", "0"]
        hub = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        try:
            endpoint = hub.stdout.readline().split()[-1]
            # huggingface_hub reads its settings once, when it is imported.
            home = {"HF_HOME": str(work / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            os.environ.update({"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **home})
            os.environ.update({"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"})
            for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
                os.environ.pop(name, None)
            global hh
            import huggingface_hub as hh
            import huggingface_hub.errors

            program = build_program(args.build, work) if args.build else None
            checks = Checks(work, endpoint, program)
            for name in [n for n in dir(checks) if n.startswith("check_")]:
                if program is None and "ours" in name:
                    continue
                try:
                    getattr(checks, name)()
                    passed += 1
                except Exception:
                    failed += 1
                    print(f"FAILED {name}")
                    traceback.print_exc()
        finally:
            hub.kill()
            hub.wait()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
