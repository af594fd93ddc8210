"""Names that other libraries use, and what to write in a recipe instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping

BATCH = "training.batch_examples, the examples of one optimizer step on all devices"
PREFERENCES = "causal_lm on the preferred answers; training on preferences is not supported"

SCHEDULE_FREE = ("schedule_free_adamw", "schedule_free_adamw, with training.schedule: constant")

KEYS: Mapping[str, str] = {
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
    "resume_from_checkpoint": "the option --resume of peftlab run, or init_from for another training",
    "loftq_config": "nothing: PEFT's LoftQ needs a GPU and ignores alpha; use quantization: nf4 with lora",
    "loraplus_lr_ratio": "method.b_rate_ratio",
    "num_virtual_tokens": "method.length",
    "bottleneck_size": "method.bottleneck",
    "load_in_4bit": "quantization: nf4",
    "load_in_8bit": "quantization: int8",
    "bits": "quantization: nf4 or int8",
    "output_dir": "the option --output of peftlab run",
    "modules_to_save": "nothing, the task head is always trained and saved",
}
"""Unknown key -> the key of a recipe, or what takes its place."""

KINDS: Mapping[str, tuple[str, str]] = {
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


def key_hint(name: str) -> str:
    """` (use ...)` for a key of another library, else "".

    >>> key_hint("lr"), key_hint("rnak")
    (' (use training.learning_rate)', '')
    """
    return f" (use {KEYS[name]})" if name in KEYS else ""


def kind_hint(word: str, kinds: Collection[str]) -> str:
    """` (use ...)` for another name of one of `kinds`, else "".

    >>> kind_hint("QLoRA", ["lora"]), kind_hint("qlora", ["nf4"])
    (' (use lora, with quantization: nf4)', '')
    """
    kind, text = KINDS.get(word.lower().replace("-", "_"), ("", ""))
    return f" (use {text})" if kind in kinds else ""
