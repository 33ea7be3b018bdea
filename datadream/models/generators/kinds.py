"""The table of kinds of adaptation, by `adapt.kind`: what part of a generator is trained."""

from .base import Kind
from .heads import attached_heads, merged_heads, require_heads
from .inversion import attached_token, loaded_token, require_token
from .lora import attached_lora, merged_lora

KINDS = {
    "lora": Kind(attached_lora, merged_lora),
    "heads": Kind(attached_heads, merged_heads, require_heads),
    "token": Kind(attached_token, loaded_token, require_token),
}
