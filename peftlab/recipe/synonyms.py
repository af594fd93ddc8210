"""Names that other libraries use, and what to write in a recipe instead."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

BATCH = "training.batch_examples, the examples of one optimizer step on all devices"
PREFERENCES = "causal_lm on the preferred answers; training on preferences is not supported"

SCHEDULE_FREE = ("schedule_free_adamw", "schedule_free_adamw, with training.schedule: constant")

SHARES = ("_share", ".share", "dropout", ".warmup", "_smoothing")
BASE = "model, a Hub id or a folder"
SHARE = "data.validation_share, a fraction of train"
DEVICE = (
    "not part of a recipe: a run takes the GPU if there is one; CUDA_VISIBLE_DEVICES chooses another or, "
    "empty, the CPU; --device-map of peftlab run or accelerate launch uses several"
)
CHECKPOINTS = "the option --checkpoint-every of peftlab run"
TASK = "nothing, the task sets it"
PREFERENCE_TRAINING = "training on preferences or rewards is not offered; causal_lm trains on given answers"

PEFT_TYPES = ("loha", "lokr", "vera", "oft", "boft", "fourierft", "randlora", "miss", "hra", "ln_tuning", "vblora")
REGRESSION = "{kind: sequence_classification, problem: regression}"
MULTI_LABEL = "{kind: sequence_classification, problem: multi_label}"
PAIRS = "sequence_classification, with data.columns: {text_pair: COLUMN}"
STORED = "not offered for training: quantization: nf4 packs the float weights of a base as they are loaded"
DATA_DRIVEN = "not offered: it needs a pass over the training data; pissa and olora start from the weights alone"
KERNELS = "not offered; sdpa lets torch choose its kernel"
NO_TASK = "not offered; peftlab trains on text to label, tag, answer or text"

ADVICE: Mapping[str, str] = {
    **dict.fromkeys(("device", "device_map", "gpus", "num_gpus", "cuda", "use_cpu", "no_cuda", "n_gpu"), DEVICE),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config"), "not part of a recipe: accelerate launch --config_file"),
    **dict.fromkeys(("save_steps", "save_strategy"), CHECKPOINTS),
    "save_total_limit": "the option --keep-checkpoints of peftlab run",
    **dict.fromkeys(
        ("report_to", "wandb_project", "use_wandb"), "the option --track of peftlab run, e.g. --track wandb"
    ),
    **dict.fromkeys(("logging_steps", "logging_strategy"), "nothing, every step is logged by --track of peftlab run"),
    **dict.fromkeys(("push_to_hub", "hub_model_id"), "not offered: upload the run's folder adapter/ with hf upload"),
    **dict.fromkeys(("group_by_length", "remove_unused_columns"), "nothing, it is always done"),
    **dict.fromkeys(("dataloader_num_workers", "num_proc", "preprocessing_num_workers"), "nothing, it is not needed"),
    "torch_compile": "not offered: models are not compiled",
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), "nothing, evaluations choose their own batches"),
    **dict.fromkeys(
        ("train_on_inputs", "train_on_prompt"), "nothing, causal_lm learns the answers only, and all of plain text"
    ),
    "flash_attention": "not offered; training.attention: sdpa lets torch choose the kernel",
    "trust_remote_code": "the option --trust-remote-code REVISION of peftlab run",
    **dict.fromkeys(("task_type", "num_labels", "inference_mode", "fan_in_fan_out"), TASK),
    "shuffle": "nothing, train is shuffled by seeds.data_order",
    "finetuning_type": "the key method, e.g. method: lora",
    "peft_type": "the key method, e.g. method: lora",
    "adapter": "the key method, e.g. method: lora",
    "peft": "the key method, e.g. method: lora",
    "stage": "the key task, e.g. task: causal_lm",
    "delimiter": "the key data.format: csv reads commas and semicolons, tsv tabs",
    "sep": "the key data.format: csv reads commas and semicolons, tsv tabs",
    "resume_from_checkpoint": "the option --resume of peftlab run, or init_from for another training",
    "output_dir": "the option --output of peftlab run",
    "modules_to_save": "nothing, the task head is always trained and saved",
    "bnb_4bit_quant_type": "the kind, quantization: nf4 or fp4",
}
"""Unknown key -> what takes its place outside of a recipe, or that nothing does."""

KEYS: Mapping[str, str] = {
    "micro_batch_size": "training.batch_examples for one optimizer step, training.accumulation for its micro-batches",
    **dict.fromkeys(("train_batch_size", "train_batch_size_per_device"), BATCH),
    "learning_rate_scheduler": "training.schedule",
    "metric_for_best_model": "task.select_by",
    "label_smoothing_factor": "task.label_smoothing",
    "packing": "task.packing",
    "sample_packing": "task.packing",
    **dict.fromkeys(("cutoff_len", "sequence_len", "model_max_length"), "task.max_length"),
    **dict.fromkeys(("max_source_length", "max_input_length"), "task.max_length"),
    "max_target_length": "task.max_target",
    "num_beams": "task.beams",
    "chat_template": "task.template",
    "problem_type": "task.problem",
    **dict.fromkeys(("lora_r", "lora_rank"), "method.rank"),
    **dict.fromkeys(("lora_target", "lora_target_modules", "lora_target_linear"), "method.targets"),
    "bias": "method: bitfit, which trains the biases, in place of this method",
    "prompt_tuning_init_text": "method.initial_text",
    "bnb_4bit_use_double_quant": "quantization.double_quantization",
    "bnb_4bit_compute_dtype": "training.precision",
    "bnb_4bit_quant_storage": "quantization.storage",
    "quantization_bit": "quantization: nf4 or int8",
    **dict.fromkeys(("torch_dtype", "dtype"), "training.precision"),
    **dict.fromkeys(("base_model", "model_name_or_path", "model_name", "pretrained_model_name_or_path"), BASE),
    **dict.fromkeys(("model.path", "model.name", "model.model_name_or_path"), "model.id"),
    **dict.fromkeys(
        ("dataset", "datasets", "dataset_name", "data.path", "data.name"),
        "data.id for the Hub, data.train for your own file",
    ),
    **dict.fromkeys(
        ("train_file", "train_path", "data_path", "data.file", "data.files", "data.data_files"), "data.train"
    ),
    **dict.fromkeys(("valid", "dev", "eval", "validation_file", "eval_file", "val"), "data.validation"),
    "test_file": "data.test",
    **dict.fromkeys(("val_set_size", "val_size", "validation_split", "eval_size", "validation_size"), SHARE),
    **dict.fromkeys(("test_size", "test_split"), "data.test_share, a fraction of train"),
    "split": "data.splits, e.g. {train: NAME}",
    **dict.fromkeys(("text_column", "dataset_text_field"), "data.columns: {text: COLUMN}"),
    **dict.fromkeys(("label_column", "label_column_name"), "data.columns: {label: COLUMN}"),
    "num_train_epochs": "training.epochs",
    "max_steps": "training.steps",
    "per_device_train_batch_size": BATCH,
    "batch_size": BATCH,
    "gradient_accumulation_steps": "training.accumulation",
    "lr": "training.learning_rate",
    "optim": "training.optimizer",
    "optim_args": "the settings of training.optimizer",
    "adam_beta1": "training.adam_betas",
    "adam_beta2": "training.adam_betas",
    "lr_scheduler_type": "training.schedule",
    "lr_scheduler": "training.schedule",
    "min_lr": "training.minimum_learning_rate, a fraction of the peak",
    "min_lr_rate": "training.minimum_learning_rate",
    "min_lr_ratio": "training.minimum_learning_rate",
    "num_decay_steps": "training.decay_fraction, a fraction of the optimizer steps",
    "decay_type": "training.decay_shape",
    "warmup_ratio": "training.warmup",
    "warmup_steps": "training.warmup, a fraction of the optimizer steps",
    "max_grad_norm": "training.clip",
    "eval_steps": "training.evaluate_every",
    "eval_strategy": "training.evaluate_every",
    "evaluation_strategy": "training.evaluate_every",
    "load_best_model_at_end": "training.keep_best",
    "early_stopping_patience": "training.patience",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "max_seq_length": "task.max_length",
    "max_length": "task.max_length",
    "src_lang": "task.source_language",
    "tgt_lang": "task.target_language",
    "source_lang": "task.source_language",
    "target_lang": "task.target_language",
    "forced_bos_token": "task.target_language",
    "source_prefix": "task.prefix",
    "attn_implementation": "training.attention",
    "neftune_noise_alpha": "training.embedding_noise",
    "seed": "seeds",
    "r": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "target_modules": "method.targets",
    "target_parameters": "method.experts: true",
    "exclude_modules": "method.exclude",
    "use_dora": "method.weight_decomposed",
    "use_rslora": "method.rank_stabilized",
    "init_lora_weights": "method.initialization",
    "layers_to_transform": "method.layers",
    "layers_pattern": "method.targets, with method.layers for the numbers",
    "adapter_name_or_path": "init_from",
    "loftq_config": "nothing: PEFT's LoftQ needs a GPU and ignores alpha; use quantization: nf4 with lora",
    "loraplus_lr_ratio": "method.b_rate_ratio",
    "num_virtual_tokens": "method.length",
    "bottleneck_size": "method.bottleneck",
    "load_in_4bit": "quantization: nf4",
    "load_in_8bit": "quantization: int8",
    "bits": "quantization: nf4 or int8",
}
"""Unknown key -> the key of a recipe, or what takes its place."""

KINDS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("bf16", "bfloat"), ("bfloat16", "bfloat16")),
    **dict.fromkeys(("fp32", "float", "full_precision"), ("float32", "float32")),
    **dict.fromkeys(("fp16", "float16", "half"), ("bfloat16", "bfloat16; float16 is not offered")),
    **{name: ("peft", f"{{kind: peft, type: {name.upper()}}}") for name in PEFT_TYPES},
    **dict.fromkeys(
        ("full_finetuning", "full_fine_tuning", "full_finetune", "finetune", "ft", "fft"), ("full", "full")
    ),
    **dict.fromkeys(("linear_probe", "linear_probing", "frozen"), ("head", "head")),
    "(ia)3": ("ia3", "ia3"),
    **dict.fromkeys(("bitsandbytes", "bnb"), ("nf4", "nf4 for 4 bits, int8 for 8")),
    **dict.fromkeys(("qa", "squad", "extractive_qa", "question_ans"), ("question_answering", "question_answering")),
    **dict.fromkeys(("regression", "similarity", "sts", "sts_b"), ("sequence_classification", REGRESSION)),
    **dict.fromkeys(("multi_label", "multilabel"), ("sequence_classification", MULTI_LABEL)),
    **dict.fromkeys(("nli", "paraphrase", "entailment"), ("sequence_classification", PAIRS)),
    **dict.fromkeys(("seq_cls", "text_cls"), ("sequence_classification", "sequence_classification")),
    **dict.fromkeys(("pos", "pos_tagging"), ("token_classification", "{kind: token_classification, scheme: plain}")),
    "token_cls": ("token_classification", "token_classification"),
    **dict.fromkeys(("clm", "lm", "language_modeling", "completion", "pretraining"), ("causal_lm", "causal_lm")),
    **dict.fromkeys(("seq_2_seq_lm", "text2text_generation", "seq2seq_lm"), ("seq2seq", "seq2seq")),
    "4bit": ("nf4", "nf4"),
    "int4": ("nf4", "nf4"),
    "half_quadratic": ("hqq", "hqq"),
    "int8_weight_only": ("torchao_int8", "torchao_int8"),
    "torchao": ("torchao_int8", "torchao_int8"),
    "8bit": ("int8", "int8"),
    "qlora": ("lora", "lora, with quantization: nf4"),
    "dora": ("lora", "{kind: lora, weight_decomposed: true}"),
    "rslora": ("lora", "{kind: lora, rank_stabilized: true}"),
    "pissa": ("lora", "{kind: lora, initialization: pissa}"),
    "olora": ("lora", "{kind: lora, initialization: olora}"),
    **dict.fromkeys(("gaussian", "kaiming", "default"), ("zero", "zero: random values in A, zeros in B")),
    "houlsby": ("adapter", "{kind: adapter, variant: houlsby}"),
    "pfeiffer": ("adapter", "{kind: adapter, variant: pfeiffer}"),
    "bottleneck": ("adapter", "adapter"),
    "prefix": ("prefix_tuning", "prefix_tuning"),
    "ptuning": ("p_tuning", "p_tuning"),
    "prompt": ("prompt_tuning", "prompt_tuning"),
    "ner": ("token_classification", "token_classification"),
    "classification": ("sequence_classification", "sequence_classification"),
    "sentiment": ("sequence_classification", "sequence_classification"),
    "text_classification": ("sequence_classification", "sequence_classification"),
    "summarization": ("seq2seq", "seq2seq"),
    "translation": ("seq2seq", "seq2seq"),
    "chat": ("causal_lm", "causal_lm"),
    "instruction": ("causal_lm", "causal_lm"),
    "sft": ("causal_lm", "causal_lm"),
    "text_generation": ("causal_lm", "causal_lm"),
    **dict.fromkeys(("dpo", "orpo", "kto"), ("causal_lm", PREFERENCES)),
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adam", "adamw_bnb_32bit"), ("adamw", "adamw")),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw8bit", "adam_8bit"), ("adamw_8bit", "adamw_8bit")),
    **dict.fromkeys(("paged_adamw_32bit", "pagedadamw"), ("paged_adamw", "paged_adamw")),
    "pagedadamw8bit": ("paged_adamw_8bit", "paged_adamw_8bit"),
    **dict.fromkeys(("schedule_free", "schedulefree", "schedule_free_adam", "adamw_schedule_free"), SCHEDULE_FREE),
    "constant_with_warmup": ("constant", "constant, with training.warmup"),
    "cosine_with_min_lr": ("cosine", "cosine, with training.minimum_learning_rate"),
    "cosine_warmup_with_min_lr": ("cosine", "cosine, with training.minimum_learning_rate"),
    "warmup_stable_decay": ("wsd", "wsd"),
}
"""Unknown kind -> the kind of a component or a schedule, and what to write."""


NOT_OFFERED: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("gptq", "awq", "gguf", "q4_k_m", "q8_0", "fp8", "exl2", "aqlm", "eetq", "mxfp4"), ("nf4", STORED)),
    "galore": ("lora", "not offered; lora, or full with training.optimizer: adamw_8bit, need less memory too"),
    "freeze": ("head", "not offered: training some layers; head trains the task head alone, lora has layers: [...]"),
    **dict.fromkeys(("eva", "corda", "lora_ga"), ("pissa", DATA_DRIVEN)),
    "loftq": ("zero", "not offered: PEFT's LoftQ needs a GPU and ignores alpha; use zero over quantization: nf4"),
    **dict.fromkeys(("flash_attention_2", "flash_attention_3", "flex_attention", "fa2"), ("sdpa", KERNELS)),
    "sgd": ("adamw", "not offered; adamw is the default, adafactor has the smallest state"),
    "lion": ("adamw", "not offered; adamw is the default, adafactor has the smallest state"),
    **dict.fromkeys(("grpo", "ppo", "rlhf", "rm", "reward_modeling", "simpo"), ("causal_lm", PREFERENCE_TRAINING)),
    **dict.fromkeys(("fill_mask", "mlm", "masked_lm"), ("causal_lm", f"masked language modeling is {NO_TASK}")),
    **dict.fromkeys(
        ("embedding", "feature_extraction", "retrieval"), ("causal_lm", f"training embeddings is {NO_TASK}")
    ),
    **dict.fromkeys(
        ("image_classification", "vision", "asr", "speech"), ("causal_lm", f"images and audio are {NO_TASK}")
    ),
    **dict.fromkeys(
        ("polynomial", "inverse_sqrt", "cosine_with_restarts"),
        ("cosine", "not offered; linear and cosine fall to the end"),
    ),
}
"""Unknown kind -> a kind of its family, and that it is not offered."""

VALUES: Mapping[tuple[str, str], str] = {
    ("quantization", "4"): "nf4",
    ("quantization", "8"): "int8",
    ("quantization", "true"): "nf4 or int8",
    ("quantization", "false"): "none, or leave the key out",
    ("quantization", "null"): "none, or leave the key out",
    ("method", "null"): "head to train the task head alone",
    ("training.evaluate_every", '"epoch"'): "null, at the end of each epoch",
    ("training.evaluate_every", '"no"'): "null; the end of the training is always evaluated",
    ("training.patience", "0"): "null for no early stopping",
}
"""Key and its value as JSON -> what to write."""

BOUNDS: Mapping[str, str] = {
    "training.warmup": "a fraction of the optimizer steps: 0.1 is a tenth of them",
}
"""Key -> the meaning of its number, for one out of range."""


def key_hint(name: str, section: str = "") -> str:
    """` (use ...)` for a key of another library, else "".

    >>> key_hint("lr"), key_hint("rnak")
    (' (use training.learning_rate)', '')
    """
    for key in (f"{section}.{name}", name):
        if key in KEYS:
            return f" (use {KEYS[key]})"
        if key in ADVICE:
            text = ADVICE[key]
            return f" ({text})" if text.startswith("not ") else f" (use {text})"
    return ""


def kind_hint(word: str, kinds: Collection[str]) -> str:
    """` (use ...)` for another name of one of `kinds`, else "".

    >>> kind_hint("QLoRA", ["lora"]), kind_hint("qlora", ["nf4"])
    (' (use lora, with quantization: nf4)', '')
    """
    name = word.lower().replace("-", "_")
    kind, text = KINDS.get(name, ("", ""))
    if kind in kinds:
        return f" (use {text})"
    kind, text = NOT_OFFERED.get(name, ("", ""))
    return f" ({text})" if kind in kinds else ""


def value_hint(key: str, value: object) -> str:
    """` (use ...)` for a value that other libraries accept at this key, or a number in another unit; else "".

    >>> value_hint("quantization", 4), value_hint("data.validation_share", 10), value_hint("training.epochs", "3")
    (' (use nf4)', ' (a fraction: 10 percent is 0.1)', ' (a number is written without quotes: 3)')
    """
    text = VALUES.get((key, json.dumps(value, default=str)))
    if text is not None:
        return f" (use {text})"
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", value, re.IGNORECASE):
        return f" (a number is written without quotes: {value})"
    if key in BOUNDS:
        return f" ({BOUNDS[key]})"
    if isinstance(value, int | float) and not isinstance(value, bool) and 2 <= value <= 100 and key.endswith(SHARES):
        return f" (a fraction: {value:g} percent is {value / 100:g})"
    return ""


def is_typo(word: str, option: str) -> bool:
    """True if `word` is `option` with one letter wrong, missing, added or swapped, and no other digits.

    Letters alone never lead to another thing: text-classification is not token_classification, nor int4 int8.

    >>> is_typo("lorra", "lora"), is_typo("rnak", "rank"), is_typo("int4", "int8"), is_typo("eval_steps", "steps")
    (True, True, False, False)
    """
    a, b = (text.lower().replace("-", "_") for text in (word, option))
    if [c for c in a if c.isdigit()] != [c for c in b if c.isdigit()]:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    left, right = a[start:], b[start:]
    return (
        left[1:] == right[1:]
        or left[1:] == right
        or left == right[1:]
        or (len(left) > 1 and left[:2] == right[1::-1] and left[2:] == right[2:])
    )
