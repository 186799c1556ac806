"""The schemes of quantization, as the host that the artifacts are for suggests; pure but for a look at this host."""

from jobs import hardware
from jobs.requests import VariantSearch
from jobs.spec import JobSpec
from jobs.spec.compress import StaticSearch


def planned_schemes(spec: JobSpec) -> tuple[hardware.Planned, ...]:
    """The schemes of quantization, in the order that suits the host that the artifacts are for."""
    if spec.compress.quantize is None:
        return ()
    where = intended_host(spec)
    convolutions = spec.model.name in ("lenet", "resnet")
    return hardware.order(spec.compress.quantize.schemes, where, convolutions=convolutions)


def intended_host(spec: JobSpec) -> hardware.Abilities:
    """What the host can do that the artifacts are for: the target, where the spec names one, else this one."""
    target = spec.compress.target
    if target is None:
        return hardware.abilities(hardware.flags(), cuda=hardware.has_cuda())
    return hardware.abilities(target.instructions, cuda=target.cuda)


def variant_search(spec: JobSpec) -> VariantSearch | None:
    """How int8_static is to look for its variant; None where it takes the first."""
    section, budget = spec.compress.quantize, spec.compress.budget
    limits = (section and section.static) or StaticSearch()
    if limits.max_variants == 1:
        return None
    here = hardware.abilities(hardware.flags(), cuda=False)
    return VariantSearch(
        limits=limits,
        metric=spec.metric,
        pick=spec.compress.pick,
        allowed_drop=0.005 if budget.max_metric_drop is None else budget.max_metric_drop,
        # What would saturate on either of the two hosts is not tried.
        full_range=here.exact_int8 and intended_host(spec).exact_int8,
        seed=spec.data.split.seed,
    )
