"""The table of kinds of adaptation: what is trained of a generator, by `adapt.kind`."""

from .base import Kind
from .heads import attached_heads, merged_heads, require_heads
from .inversion import attached_token, loaded_token, require_token
from .lora import attached_lora, merged_lora

KINDS = {
    "lora": Kind(attached_lora, merged_lora),
    "heads": Kind(attached_heads, merged_heads, require_heads),
    "token": Kind(attached_token, loaded_token, require_token),
}
