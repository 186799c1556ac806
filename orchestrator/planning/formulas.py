"""The formulas that a plan for a cluster rests on, each with where it is from."""


def _formula(quantity: str, formula: str, source: str) -> dict[str, str]:
    return {"quantity": quantity, "formula": formula, "source": source}


_ZERO = "Rajbhandari, Rasley, Ruwase & He 2020 (ZeRO)"
_MEGATRON = "Shoeybi et al. 2019 (Megatron-LM)"
_PIPELINE = "Narayanan et al. 2021 (Efficient Large-Scale Language Model Training on GPU Clusters)"
_RECOMPUTE = "Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models)"

FORMULAS: tuple[dict[str, str], ...] = (
    _formula(
        "model states",
        "(2 + 2 + 12)Ψ bytes in mixed precision with Adam; over N data ranks ZeRO 1 divides the 12, ZeRO 2 the "
        "gradients' 2 too, ZeRO 3 all",
        f"{_ZERO}, section 3 and figure 1",
    ),
    _formula(
        "activations",
        "what autograd keeps, layer by layer; of a transformer's layer in 16 bit sbh(8 + 24/t) bytes, with dropout's "
        "masks 4sbh more (the paper's take half); not its 5as²b/t of attention scores, which torch's kernels do not "
        "keep",
        f"{_RECOMPUTE}, equation 2",
    ),
    _formula(
        "activations, recomputed",
        "2sbh bytes a layer, what goes into it; and one layer's at a time",
        f"{_RECOMPUTE}, section 5; Chen et al. 2016",
    ),
    _formula(
        "micro-batches in flight",
        "min(m, p − i) in stage i of p, of m (one forward, one backward)",
        f"{_PIPELINE}, section 2.2",
    ),
    _formula("compute", "6 operations a multiply-accumulate of the forward pass, 2 of them forward", _PIPELINE),
    _formula(
        "bubble",
        "(p − 1)/m of the time of a step without it: (p − 1)/(m + p − 1) of the step",
        f"{_PIPELINE}, section 2.2",
    ),
    _formula(
        "data parallel",
        "2Ψ(N−1)/N values at ZeRO 0, 3Ψ at 1, (2m + 1)Ψ at 2, 3mΨ at 3",
        f"{_ZERO}, section 7; for ZeRO 1 and 2 as DeepSpeed does it (docs/layouts.md)",
    ),
    _formula(
        "tensor parallel",
        "all-reduces of 2(t−1)/t of the activations that peers sum: two in a layer's forward, two in its backward pass",
        f"{_MEGATRON}, section 3",
    ),
    _formula("pipeline", "activations of each border forward, their gradients back", f"{_PIPELINE}, section 2.2"),
    _formula(
        "time of a collective",
        "bytes / bandwidth + messages × latency, rings; with k peers on a node one byte in k leaves it",
        "Thakur, Rabenseifner & Gropp 2005 (Optimization of Collective Communication Operations in MPICH), section 4",
    ),
    _formula(
        "offload",
        "gradients in fp32 to the host, weights back; 28 bytes a parameter of the host's memory for Adam",
        "Ren et al. 2021 (ZeRO-Offload), section 4",
    ),
    _formula(
        "utilization (MFU)",
        "operations that the model needs / (devices × TFLOP/s by the profile × time)",
        "Chowdhery et al. 2022 (PaLM), appendix B",
    ),
)
