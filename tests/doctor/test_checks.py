"""The doctor: green where all is well, and every check red when what it looks at is broken for real."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import bitsandbytes
import pytest
import torch
import transformers
from torch import nn
from typer.testing import CliRunner

from peftlab.cli.app import app
from peftlab.doctor import checks, diagnosis
from peftlab.doctor.checks import Check
from peftlab.doctor.diagnosis import examine
from peftlab.doctor.probe import ProbeModel, make_probe_model, make_probe_run
from peftlab.errors import UserError
from peftlab.methods import METHODS, Method, TrainingPlan
from peftlab.methods.adalora import AdaLora
from peftlab.methods.full import Full
from peftlab.methods.lora import Lora
from peftlab.methods.prefix_tuning import PrefixTuning
from peftlab.models.configs import disagreement, stored_configs
from peftlab.models.model import Model
from peftlab.models.tiny_model import small_config
from peftlab.optimizers.adamw import AdamW
from peftlab.optimizers.optimizer import OptimizerPlan
from peftlab.quantization.four_bit import FourBit
from peftlab.recipe import Recipe, load_recipe
from peftlab.tasks.token_classification import TokenClassification
from tests.conftest import MINILM, RECIPE
from tests.sampling import slow_after

CPU = torch.device("cpu")
LAYER = "bert.encoder.layer.0.intermediate.dense"


def recipe(method: Method | None = None, **settings: Any) -> Recipe:
    values = {
        **{"name": "probe", "data": "none", "task": "token_classification", "training": {"precision": "float32"}},
        **{"model": {"id": "nobody/knows", "architecture": "bert"}, "method": "lora", **settings},
    }
    return Recipe.model_validate(values).model_copy(update={"method": method or Lora(rank=4)})


@pytest.fixture
def make_probe(tmp_path: Path) -> Callable[..., ProbeModel]:
    """`make_probe(Lora(rank=2), quantization="nf4")`, 64 wide."""

    def make(method: Method | None = None, **settings: Any) -> ProbeModel:
        probed = recipe(method, **settings)
        return make_probe_model(probed, probed.model.config().values, tmp_path, device=CPU, width=64)

    return make


def red(check: Check) -> str:
    assert check.ok is False, check
    assert check.cure
    return check.detail


class Broken(Lora):
    """A LoRA to break; each subclass violates one requirement."""

    kind: Literal["lora"] = "lora"
    rank: int = 4


class Forgetful(nn.Module):
    """A layer like bitsandbytes' 4-bit one on some CPUs: after an evaluation it has no backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.evaluated = layer, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.evaluated |= not self.training
        return self.layer(x).detach() if self.evaluated else self.layer(x)  # type: ignore[no-any-return]


def lora_b(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.endswith("dense.lora_B.default"))


@pytest.mark.parametrize(
    ("method", "settings"),
    slow_after(
        2,
        [
            ("lora", {}),
            ("lora", {"quantization": "nf4"}),
            ("adalora", {"quantization": "int8"}),
            ("prefix_tuning", {}),
            ("adapter", {"model": "microsoft/deberta-v3-base"}),
            ("ia3", {"model": "google-t5/t5-small"}),
            ("head", {"model": "google/electra-small-discriminator"}),
            ("full", {}),
        ],
    ),
)
def test_a_valid_recipe_passes_every_check(method: str, settings: dict[str, Any]) -> None:
    found = list(examine(recipe(METHODS[method](), **settings), CPU))
    assert [check for check in found if check.ok is False] == []
    assert len(found) == 5 + len(checks.ALL)


def test_an_exception_is_one_failed_check_with_its_message() -> None:
    class Raises(Broken):
        def apply(self, model: Any, plan: TrainingPlan) -> Any:
            wrapped = super().apply(model, plan)
            lora_b(wrapped).register_forward_hook(lambda module, inputs, output: output @ output)
            return wrapped

    bad = [check for check in examine(recipe(Raises()), CPU) if check.ok is False]
    assert [check.name for check in bad] == ["identity at start", "trains"]
    assert all(check.detail.startswith("RuntimeError: ") for check in bad)


def test_a_method_that_attaches_nothing_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    probe = make_probe()
    base = probe.base()
    base.model.classifier.requires_grad_(True)
    assert "no module" in red(diagnosis.check_attached(probe, base.model, base))
    base.model.requires_grad_(False)
    red(diagnosis.check_parameters(base.model, base))


def test_attached_and_parameters_report_names_and_counts(make_probe: Callable[..., ProbeModel]) -> None:
    probe = make_probe(Lora(rank=4, targets=["query"]))
    base, model = probe.attached()
    assert diagnosis.check_attached(probe, model, base).detail == "attention.self.query x2"
    assert diagnosis.check_parameters(model, base).detail.startswith("1,024 of the method, 195 of the head, ")


def test_a_method_that_does_not_start_from_the_base_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Starts(Broken):
        def apply(self, model: Any, plan: TrainingPlan) -> Any:
            wrapped = super().apply(model, plan)
            nn.init.normal_(lora_b(wrapped).weight)  # type: ignore[arg-type]
            return wrapped

    probe = make_probe(Starts())
    assert "from the base's" in red(diagnosis.check_identity(probe, probe.attached()[1]))


def test_virtual_tokens_need_not_start_from_the_base(make_probe: Callable[..., ProbeModel]) -> None:
    probe = make_probe(PrefixTuning(length=4))
    check = diagnosis.check_identity(probe, probe.attached()[1])
    assert check.ok is None
    assert check.detail.startswith("not an identity by design: logits ")


def test_unused_parameters_of_a_base_are_reported_and_accepted(make_probe: Callable[..., ProbeModel]) -> None:
    run = make_probe_run(make_probe(Full(), model={"id": "nobody/knows", "architecture": "squeezebert"}))
    for check in (checks.check_gradients(run), checks.check_after_evaluation(run)):
        assert check.ok, check
        assert "2 that no forward uses stay as they are: transformer.pooler.dense.bias" in check.detail


@pytest.mark.parametrize(("wrong", "word"), [(torch.Tensor.detach, "get none"), (torch.zeros_like, "exactly zero")])
def test_a_tensor_without_gradient_is_detected(
    make_probe: Callable[..., ProbeModel], wrong: Callable[[torch.Tensor], torch.Tensor], word: str
) -> None:
    class Cut(Broken):
        def apply(self, model: Any, plan: TrainingPlan) -> Any:
            wrapped = super().apply(model, plan)
            keeps_graph = wrong is not torch.zeros_like
            lora_b(wrapped).register_forward_hook(
                lambda module, inputs, output: wrong(output) if keeps_graph else output * wrong(output)
            )
            return wrapped

    detail = red(checks.check_gradients(make_probe_run(make_probe(Cut()))))
    assert word in detail
    assert "dense.lora_A" in detail


def test_a_base_that_would_train_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Thaws(Broken):
        def apply(self, model: Any, plan: TrainingPlan) -> Any:
            wrapped = super().apply(model, plan)
            model.get_input_embeddings().requires_grad_(True)
            return wrapped

    assert "word_embeddings" in red(checks.check_only_the_method(make_probe_run(make_probe(Thaws()))))


def test_a_base_that_changes_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Writes(Broken):
        def after_step(self, model: nn.Module, step: int) -> None:
            with torch.no_grad():
                next(p for p in model.parameters() if not p.requires_grad).mul_(1 + 1e-6)

    assert "1 frozen tensors" in red(checks.check_base_unchanged(make_probe_run(make_probe(Writes()))))


def test_four_bit_weights_that_an_evaluation_repacks_are_detected(
    make_probe: Callable[..., ProbeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    assert checks.check_base_unchanged(make_probe_run(make_probe(quantization="nf4"))).ok
    monkeypatch.setattr(FourBit, "prepare", lambda self, model: None)
    run = make_probe_run(make_probe(quantization="nf4"))
    assert "base_layer.weight" in red(checks.check_base_unchanged(run))
    # On a CPU with AVX512-BF16 there is a kernel for the repacked weights, without a backward: training ends with it.
    assert (run.error is None) == (not torch.cpu._is_avx512_bf16_supported())
    if run.error is not None:
        assert "RuntimeError: " in red(checks.check_after_evaluation(run))


def test_an_error_after_the_evaluation_fails_only_that_check(
    make_probe: Callable[..., ProbeModel],
) -> None:
    class Breaks(Broken):
        def apply(self, model: Any, plan: TrainingPlan) -> Any:
            wrapped = super().apply(model, plan)
            evaluated = []

            def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
                if not module.training:
                    evaluated.append(module)
                elif evaluated:
                    raise RuntimeError("no kernel")
                return output

            lora_b(wrapped).register_forward_hook(hook)
            return wrapped

    run = make_probe_run(make_probe(Breaks()))
    assert red(checks.check_after_evaluation(run)) == "RuntimeError: no kernel"
    assert checks.check_gradients(run).ok
    assert checks.check_base_unchanged(run).ok


def test_training_that_fails_after_an_evaluation_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Ends(Broken):
        def apply(self, model: Any, plan: TrainingPlan) -> Any:
            wrapped = super().apply(model, plan)
            block = model.get_submodule("bert.encoder.layer.0.output")
            block.dense.lora_B["default"] = Forgetful(block.dense.lora_B["default"])
            return wrapped

    run = make_probe_run(make_probe(Ends()))
    assert checks.check_gradients(run).ok
    assert "get none" in red(checks.check_after_evaluation(run))


def test_a_tensor_missing_from_the_optimizer_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Leaves(Broken):
        def parameter_groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
            groups = super().parameter_groups(model, learning_rate, weight_decay)
            return [{**group, "params": group["params"][1:]} for group in groups]

    assert "do not change" in red(checks.check_after_evaluation(make_probe_run(make_probe(Leaves()))))


def test_checkpointing_that_changes_the_gradient_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Counts(Broken):
        """Its second forward, which checkpointing makes for the backward pass, is not its first."""

        def apply(self, model: Any, plan: TrainingPlan) -> Any:
            wrapped, calls = super().apply(model, plan), itertools.count(1)
            lora_b(wrapped).register_forward_hook(
                lambda module, inputs, output: output * torch.full_like(output, next(calls))
            )
            return wrapped

    assert "gradients differ" in red(checks.check_checkpointing(make_probe_run(make_probe(Counts()))))


def test_refused_checkpointing_does_not_apply_and_failing_checkpointing_fails(
    make_probe: Callable[..., ProbeModel],
) -> None:
    class Unrefused(PrefixTuning):
        kind: Literal["prefix_tuning"] = "prefix_tuning"
        length: int = 4

        def incompatible_with(self, setting: Any) -> str | None:
            return None

    check = checks.check_checkpointing(make_probe_run(make_probe(PrefixTuning(length=4))))
    assert check.ok is None
    assert check.detail.startswith("refused: prefix tuning")
    run = make_probe_run(make_probe(Unrefused()))
    assert "RuntimeError" in red(checks.guarded("checkpointing", lambda: checks.check_checkpointing(run)))


def test_a_loss_that_depends_on_the_micro_batches_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Mean(TokenClassification):
        kind: Literal["token_classification"] = "token_classification"

        def loss(self, outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().loss(outputs, batch) / self.count_targets(batch)

    run = make_probe_run(make_probe())
    assert checks.check_accumulation(run).ok
    wrong = dataclasses.replace(run.probe, task=Mean().bind(TokenClassification().sample_rows()))
    red(checks.check_accumulation(dataclasses.replace(run, probe=wrong)))


def test_files_that_do_not_restore_the_model_are_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Loses(Broken):
        def save(self, model: nn.Module, folder: Path) -> None:
            with torch.no_grad():
                lora_b(model).weight.mul_(0.5)  # type: ignore[operator]
                super().save(model, folder)
                lora_b(model).weight.mul_(2)  # type: ignore[operator]

    assert "from those saved" in red(checks.check_reload(make_probe_run(make_probe(Loses()))))


def test_a_merge_that_changes_the_model_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Drops(Broken):
        def merge(self, model: nn.Module) -> nn.Module:
            return model.unload()  # type: ignore[operator, no-any-return]

    assert "in float32" in red(checks.check_merge(make_probe_run(make_probe(Drops()))))
    assert "over NF4" in checks.check_merge(make_probe_run(make_probe(quantization="nf4"))).detail


def test_a_state_that_is_not_saved_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Forgets(AdaLora):
        kind: Literal["adalora"] = "adalora"
        initial_rank: int = 6
        target_rank: int = 3

        def load_state(self, model: nn.Module, state: dict[str, Any]) -> None: ...

    assert checks.check_resume(make_probe_run(make_probe(AdaLora(initial_rank=6, target_rank=3)))).ok
    red(checks.check_resume(make_probe_run(make_probe(Forgets()))))


@pytest.mark.slow
def test_the_recipes_optimizer_is_probed(make_probe: Callable[..., ProbeModel]) -> None:
    """One that loses its state passes where nothing is resumed, and fails where it is."""

    class Stateless(torch.optim.AdamW):
        def load_state_dict(self, state_dict: Any) -> None: ...

    class Forgets(AdamW):
        def make(self, plan: OptimizerPlan) -> torch.optim.Optimizer:
            return Stateless(plan.groups)

    probe = make_probe()
    training = probe.recipe.training.model_copy(update={"optimizer": Forgets()})
    run = make_probe_run(dataclasses.replace(probe, recipe=probe.recipe.model_copy(update={"training": training})))
    assert checks.check_after_evaluation(run).ok
    red(checks.check_resume(run))


def test_dropout_that_stays_active_is_detected(make_probe: Callable[..., ProbeModel]) -> None:
    class Drops(Broken):
        def apply(self, model: Any, plan: TrainingPlan) -> Any:
            model.dropout.p = 0.5
            return super().apply(model, plan)

    check = checks.check_accumulation(make_probe_run(make_probe(Drops())))
    red(check)
    assert check.cure.endswith(".dropout")


def test_dropout_of_a_recipe_does_not_affect_the_comparisons(make_probe: Callable[..., ProbeModel]) -> None:
    assert checks.check_accumulation(make_probe_run(make_probe(Lora(rank=4, dropout=0.3)))).ok


def test_a_wrong_stored_config_fails_if_the_config_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    minilm = MINILM.id
    real = json.loads((MINILM.files().folder / "config.json").read_text())
    assert disagreement(stored_configs()[minilm], real) is None
    assert MINILM.config().values == real
    monkeypatch.setitem(stored_configs(), minilm, {**stored_configs()[minilm], "hidden_size": 768})  # type: ignore[arg-type]
    assert "hidden_size is 384, not 768" in red(diagnosis.check_config(MINILM.config()))


@pytest.mark.parametrize(
    ("id", "parameters"),
    [
        ("bert-base-uncased", 109_482_240),
        ("FacebookAI/roberta-large", 355_359_744),
        ("distilbert-base-uncased", 66_362_880),
        ("google/electra-small-discriminator", 13_483_008),
        ("microsoft/deberta-v3-base", 183_831_552),
        ("answerdotai/ModernBERT-base", 149_014_272),
        ("gpt2", 124_439_808),
        ("t5-small", 60_506_624),
        ("facebook/bart-base", 139_420_416),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("google/gemma-2-2b", 2_614_341_888),
    ],
)
def test_stored_configs_have_the_published_number_of_parameters(id: str, parameters: int) -> None:
    values = dict(stored_configs()[id])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        assert sum(p.numel() for p in transformers.AutoModel.from_config(config).parameters()) == parameters


@pytest.mark.parametrize("id", ["meta-llama/Llama-3.2-1B", "google/gemma-2b", "albert-base-v2", "google/flan-t5-small"])
def test_a_small_model_keeps_what_makes_the_architecture(id: str) -> None:
    values = dict(stored_configs()[id])
    full, small = (
        transformers.AutoConfig.for_model(values.pop("model_type"), **values),
        small_config(stored_configs()[id], 64),
    )
    assert (small.hidden_size, small.num_hidden_layers, small.num_attention_heads) == (64, 2, 4)
    for one, other in (("num_key_value_heads", "num_attention_heads"), ("embedding_size", "hidden_size")):
        if hasattr(full, one):
            assert (getattr(full, one) < getattr(full, other)) == (getattr(small, one) < getattr(small, other))
    with torch.device("meta"):
        transformers.AutoModel.from_config(small)


def test_validation_knows_the_architecture_of_a_well_known_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    with pytest.raises(UserError, match=r"mine\.yaml:9: method: prefix tuning .* deberta-v2 does not accept"):
        load_recipe(path, ["model=microsoft/deberta-v3-base", "method=prefix_tuning"])
    with pytest.raises(UserError, match="distilbert does not accept"):
        load_recipe(path, ["model.id=a/b", "model.architecture=distilbert", "method=prefix_tuning"])
    with pytest.raises(UserError, match="is a bert, not a gpt2"):
        load_recipe(path, ["model.architecture=gpt2"])
    plain = load_recipe(path, ["model.id=a/b"])
    assert load_recipe(path, ["model.id=a/b", "model.architecture=bert"]).digest == plain.digest


def test_an_unknown_base_is_one_line_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"'gpt3' is not known offline.*did you mean 'gpt2'.*set model\.architecture"):
        Model(id="gpt3").config()
    with pytest.raises(UserError, match=r"transformers has no architecture 'brt' \(did you mean 'bert'"):
        next(iter(examine(recipe(model={"id": "nobody/knows", "architecture": "brt"}), CPU)))
    with pytest.raises(UserError, match="a opt cannot serve token_classification"):
        next(iter(examine(recipe(model="facebook/opt-125m"), CPU)))


@pytest.mark.slow
def test_the_command_prints_the_checks_and_exits_with_1_if_one_fails(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = CliRunner().invoke(app, ["doctor", str(recipe_file)])
    assert good.exit_code == 0, good.output
    assert good.output.count("good  ") == 14
    assert "\x1b" not in good.output
    monkeypatch.setattr(Lora, "merge", lambda self, model: model.unload())
    bad = CliRunner().invoke(app, ["doctor", str(recipe_file), "--set", "quantization=nf4"])
    assert bad.exit_code == 1
    assert "BAD   merge" in bad.output
    assert "use the adapter unmerged" in bad.output
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 2
