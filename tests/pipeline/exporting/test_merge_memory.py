"""What a merge holds in memory, in a process of its own."""

from collections.abc import Callable
from pathlib import Path

# Makes a base of two shards with two matrices of 64 MiB each and an adapter to it, in the folder argv[1]; prints the
# peak of this process's memory before and after the merge, and what was merged, in MiB.
MERGE_LARGE = """
import re, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tunewright.pipeline import files
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.exporting import merge, shards
from tunewright.pipeline.workspace import Workspace

def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) / 1024

folder = Path(sys.argv[1])
for name in ("base", "adapter", "merged"):
    (folder / name).mkdir()
names = [f"layers.{i}.up_proj" for i in range(4)]
block = torch.zeros(128, 8192, dtype=torch.bfloat16)
planned = [shards.Planned(f"{name}.weight", "BF16", (4096, 8192), 2**26) for name in names]
# Two matrices a shard; in small blocks, so that making the base does not set the peak.
shards.MAX_SHARD_BYTES = 2**27
shards.write_model(folder / "base", planned, lambda tensor: [block] * 32)
files.write_json(folder / "base" / "config.json", {"dtype": "bfloat16"})
lora = {f"base_model.model.{name}.lora_{part}.weight": torch.ones(shape)
        for name in names for part, shape in (("A", (16, 8192)), ("B", (4096, 16)))}
save_file(lora, folder / "adapter" / "adapter_model.safetensors")
config = {"peft_type": "LORA", "lora_alpha": 16, "r": 16}
files.write_json(folder / "adapter" / "adapter_config.json", config)
workspace = Workspace.open(folder / "home")
workspace.store.execute(
    "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES ('j', 'export', 'running', 0, '{}', 0)"
)
context = JobContext(workspace, "j", {}, folder)
(torch.ones(512, 512) @ torch.ones(512, 512)).sum()
before = peak_mib()
merge.merge(context, folder / "base", folder / "adapter", folder / "merged")
print(before, peak_mib(), files.size_bytes(folder / "merged") / 2**20)
"""


def test_memory_is_that_of_blocks_not_of_a_shard_or_a_matrix(run_python: Callable[..., str], tmp_path: Path) -> None:
    lines = run_python(MERGE_LARGE, tmp_path, CUDA_VISIBLE_DEVICES="").split()
    before_mib, peak_mib, merged_mib = map(float, lines)
    assert merged_mib > 250, "two shards of two matrices of 64 MiB, 128 in float32"
    assert peak_mib - before_mib < 64
    largest_shard_gib = 128 / 1024
    assert peak_mib / 1024 < 2.5 * largest_shard_gib + 2
