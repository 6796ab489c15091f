"""Networks of the pathology encoders, and the names that their authors' files give to weights.

Every map returns a state dict that the network takes strictly; a tensor is left out only where its
map says so, for it is no part of what makes features (text towers, mask tokens).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
WRAPPERS = ("module.", "model.", "backbone.", "teacher.", "vit.", "dinov2.")


# ---- networks ----------------------------------------------------------------------------------


class AttentionalPooler(nn.Module):
    """One learned query that attends to all tokens; the layers of CONCH.

    (B, T, context_dim) to (B, dim).
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int = 8):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.ln_k, self.ln_q = nn.LayerNorm(context_dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, context_dim) to (B, dim)."""
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, -1)
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), 1, -1)
        heads = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        pooled = nn.functional.scaled_dot_product_attention(*heads)
        return self.to_out(pooled.transpose(1, 2).flatten(2))[:, 0]


class Conch(nn.Module):
    """The image side of CONCH: tokens, attentional pooling, norm.

    ``projected`` goes on into the space that images share with texts.
    """

    def __init__(self, trunk: nn.Module, dim: int, projected: bool = False):
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionalPooler(dim, trunk.num_features)
        self.ln_contrast = nn.LayerNorm(dim)
        if projected:
            self.proj_contrast = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, dim)."""
        pooled = self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(pixels)))
        return pooled @ self.proj_contrast if hasattr(self, "proj_contrast") else pooled


class ConvStem(nn.Module):
    """CTransPath's patch embedding: two strided convolutions and a projection, (B, H, W, C)."""

    def __init__(self, img_size, embed_dim: int, norm_layer: Callable | None = None, **_):
        super().__init__()
        layers, width = [], 3
        for out in (embed_dim // 8, embed_dim // 4):
            layers += [nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        self.proj = nn.Sequential(*layers, nn.Conv2d(width, embed_dim, 1))
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()
        self.grid_size = tuple(
            side // 4 for side in img_size
        )  # of tokens, which timm's Swin asks for

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H / 4, W / 4, C)."""
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))


# ---- pooling -----------------------------------------------------------------------------------


def whole(network: nn.Module, pixels: Tensor) -> Tensor:
    """The network's own result."""
    return network(pixels)


def token(network: nn.Module, pixels: Tensor) -> Tensor:
    """The class token."""
    return network.forward_features(pixels)[:, 0]


def token_and_mean(network: nn.Module, pixels: Tensor) -> Tensor:
    """The class token and the mean of the patch tokens, registers left out."""
    tokens = network.forward_features(pixels)
    return torch.cat([tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(1)], 1)


def map_mean(network: nn.Module, pixels: Tensor) -> Tensor:
    """The mean over the last map of a convolutional network."""
    return network(pixels)[-1].mean((2, 3))


# ---- names of weights --------------------------------------------------------------------------


def plain(state: State) -> State:
    """Timm's own names; a word that stands before every name goes."""
    for word in WRAPPERS:
        if all(key.startswith(word) for key in state):
            state = {key.removeprefix(word): value for key, value in state.items()}
    return state


def without(state: State, *beginnings: str) -> State:
    """The entries whose names begin with none of these."""
    return {key: value for key, value in state.items() if not key.startswith(beginnings)}


def resnet(state: State) -> State:
    """Without the fourth stage and the classifier."""
    return without(plain(state), "layer4.", "fc.")


_TRANSFORMERS = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(.+)": r"patch_embed.proj.\1",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(.+)": r"blocks.\1.attn.proj.\2",
    r"encoder\.layer\.(\d+)\.layernorm_before\.(.+)": r"blocks.\1.norm1.\2",
    r"encoder\.layer\.(\d+)\.layernorm_after\.(.+)": r"blocks.\1.norm2.\2",
    r"encoder\.layer\.(\d+)\.(norm[12]\..+)": r"blocks.\1.\2",
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.(.+)": r"blocks.\1.mlp.fc1.\2",
    r"encoder\.layer\.(\d+)\.output\.dense\.(.+)": r"blocks.\1.mlp.fc2.\2",
    r"encoder\.layer\.(\d+)\.mlp\.(fc[12]\..+)": r"blocks.\1.mlp.\2",
    r"encoder\.layer\.(\d+)\.mlp\.weights_in\.(.+)": r"blocks.\1.mlp.fc1.\2",
    r"encoder\.layer\.(\d+)\.mlp\.weights_out\.(.+)": r"blocks.\1.mlp.fc2.\2",
    r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    r"layernorm\.(.+)": r"norm.\1",
}
_QKV = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(.+)")


def transformers(state: State) -> State:
    """Of a ViT or DINOv2 of the library transformers: queries, keys and values become one layer."""
    found, parts = {}, {}
    for key, value in without(plain(state), "pooler.", "embeddings.mask_token").items():
        if match := _QKV.fullmatch(key):
            parts.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = value
            continue
        for pattern, name in _TRANSFORMERS.items():
            if match := re.fullmatch(pattern, key):
                key = match.expand(name)
                break
        found[key] = value
    for name, each in parts.items():
        if len(each) == 3:  # a part that lacks is an absent name
            found[name] = torch.cat([each["query"], each["key"], each["value"]])
    return found


def dinov2(state: State) -> State:
    """Of DINOv2's own code, with registers: timm keeps the class token's position in the token."""
    state = without(plain(state), "mask_token")
    found = {
        key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): value
        for key, value in state.items()
    }
    if {"register_tokens", "cls_token", "pos_embed"} <= found.keys():
        found["reg_token"] = found.pop("register_tokens")
        position = found["pos_embed"]
        found["cls_token"] = found["cls_token"] + position[:, :1]
        found["pos_embed"] = position[:, 1:]
    return found


def ctranspath(state: State) -> State:
    """Of timm 0.5: a stage there ends with what the next one begins with today."""
    state = without(plain(state), "head.")
    return {
        re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key): v
        for key, v in state.items()
        if not key.endswith(("attn_mask", "relative_position_index"))
    }


def conch(state: State) -> State:
    """The image side, up to the pooled token."""
    state = without(
        plain(state), "text.", "text_decoder.", "logit_scale", "visual.attn_pool_caption.",
        "visual.ln_caption.", "visual.proj_contrast",
    )  # fmt: skip
    return {key.removeprefix("visual."): value for key, value in state.items()}


def conch_projected(state: State) -> State:
    """The image side with its projection."""
    found, state = conch(state), plain(state)
    if "visual.proj_contrast" in state:
        found["proj_contrast"] = state["visual.proj_contrast"]
    return found
