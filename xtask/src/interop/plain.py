"""transformers loads the plain folders that pruning of heads, channels, blocks and experts leaves, and computes what we do."""
from common import MODELS, WORK, compress, version
from folders import CALIBRATION, compare_logits, torch_and

MODEL = MODELS / "stories260k"
RECIPES = ["flap(sparsity=0.2, uniform=true)", "drop_blocks(count=1)", "drop_blocks(share=0.25, score=output) | refit_head"]
STRUCTURED = ["intra_fusion(sparsity=0.2)", "udfc(sparsity=0.2)", "prunenet(sparsity=0.2)"]
EXPERTS = ["reap(sparsity=0.5)", "expert_usage(sparsity=0.25)", "collaborative(sparsity=0.5)", "stun(sparsity=0.5)", "slim_moe(sparsity=0.25)"]
BOUND = 1e-4


def main(table, experts):
    torch_and()
    from transformers import AutoModelForCausalLM
    import torch
    table.head(f"Plain folders in {version('transformers')}, torch {torch.__version__}", "recipe", "logits")
    for model, recipes in [(MODEL, RECIPES + STRUCTURED), (experts, EXPERTS)]:
        for recipe in recipes:
            folder = WORK / "plain"
            try:
                compress(model, folder, "--recipe", recipe, *CALIBRATION)
                loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
                table.row(recipe, compare_logits(table, recipe, folder, loaded, BOUND))
            except Exception as error:
                table.row(recipe, f"FAILED: {error}")
                table.must(False, f"plain {recipe}: {error}")
