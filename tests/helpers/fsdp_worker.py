"""One of two processes with shards of a model (FSDP2): its outputs and gradients.

    torchrun --nproc-per-node 2 -m tests.helpers.fsdp_worker CHECKPOINT

Prints the largest difference of outputs and gradients from those of an unsharded model.
"""

import sys

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from trl.trainer.utils import add_fused_lm_head

from agentsafe.models import loading
from agentsafe.training.packing import pack
from agentsafe.training.prefix_sharing import prefix_sharing
from agentsafe.training.tokenize import Trajectory

PROMPT = list(range(30))
TRAJECTORIES = [
    Trajectory([*PROMPT, *range(40 + n, 60 + 2 * n)], [0] * 30 + [1] * (20 + n)) for n in range(6)
]


def found(folder: str, sharded: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probabilities of several packed batches, and the gradients of their sum."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(loading.load_model(folder), lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    add_fused_lm_head(model.get_base_model())
    # Before the model is sharded, as in a training.
    with prefix_sharing(model.get_base_model()):
        if sharded:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for module in model.modules():
                if isinstance(module, Qwen3DecoderLayer):
                    fully_shard(module, mesh=mesh)
            fully_shard(model, mesh=mesh)
        packing = pack(TRAJECTORIES, [range(6)], max_tokens=80)
        assert len(packing.batches) > 1
        out = model(packing=packing, fused_lm_head=True).log_probs
        out.sum().backward()
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert grads and out.abs().sum() > 0
    return out.detach(), [grad.full_tensor() if sharded else grad for grad in grads]


def main() -> None:
    dist.init_process_group("gloo")
    (out, grads), (sharded_out, sharded_grads) = (
        found(sys.argv[1], sharded) for sharded in (False, True)
    )
    pairs = [(out, sharded_out), *zip(grads, sharded_grads, strict=True)]
    apart = max((one - other).abs().max().item() for one, other in pairs)
    if dist.get_rank() == 0:
        print(f"apart {apart:.3g}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
