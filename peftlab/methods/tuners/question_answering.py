"""PEFT's model for question answering, extended to pass token types and positions to the base model."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftModelForQuestionAnswering

PASSED_ON = ("token_type_ids", "position_ids")


class WithTokenTypes(PeftModelForQuestionAnswering):
    """Passes token types and positions, which separate question and context, with and without virtual tokens."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active_peft_config.is_prompt_learning:
            with self._enable_peft_forward_hooks(*args, **kwargs):
                inputs = {name: value for name, value in kwargs.items() if name not in self.special_peft_forward_args}
                return self.base_model(*args, **inputs)
        self._passed_on: dict[str, Any] = {name: kwargs.pop(name) for name in PASSED_ON if name in kwargs}
        try:
            return super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            del self._passed_on

    def _adjust_prompt_learning_kwargs(
        self, peft_config: PeftConfig, *, kwargs: dict[str, Any], remove_token_type_ids: bool = True
    ) -> None:
        """Restore the arguments before PEFT extends them for the virtual tokens."""
        kwargs.update(self._passed_on)
        super()._adjust_prompt_learning_kwargs(peft_config, kwargs=kwargs, remove_token_type_ids=remove_token_type_ids)
