"""PEFT's model for question answering, whose own version takes token types and positions and drops them."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftModelForQuestionAnswering

DROPPED = ("token_type_ids", "position_ids")


class WithTokenTypes(PeftModelForQuestionAnswering):
    """The base tells question and context apart as it learnt to, with virtual tokens and without."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active_peft_config.is_prompt_learning:
            with self._enable_peft_forward_hooks(*args, **kwargs):
                given = {name: value for name, value in kwargs.items() if name not in self.special_peft_forward_args}
                return self.base_model(*args, **given)
        self._kept: dict[str, Any] = {name: kwargs.pop(name) for name in DROPPED if name in kwargs}
        try:
            return super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            del self._kept

    def _adjust_prompt_learning_kwargs(
        self, peft_config: PeftConfig, *, kwargs: dict[str, Any], remove_token_type_ids: bool = True
    ) -> None:
        """What PEFT does to the base's arguments before it adds the virtual tokens' own types to them."""
        kwargs.update(self._kept)
        super()._adjust_prompt_learning_kwargs(peft_config, kwargs=kwargs, remove_token_type_ids=remove_token_type_ids)
