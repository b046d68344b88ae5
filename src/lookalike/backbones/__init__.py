"""Encoders: backbone + head + preprocessing, single or several combined, with their weights and bundles."""

from lookalike.backbones.alignment import fit_alignment
from lookalike.backbones.bundle import load_bundle, save_bundle
from lookalike.backbones.encoder import COMBINATIONS, Encoder, combine, require_combination
from lookalike.backbones.member import Member
from lookalike.backbones.pretrained import build_member
from lookalike.backbones.projection import EMBEDDING_DIM, fit_pca

__all__ = [
    "COMBINATIONS",
    "EMBEDDING_DIM",
    "Encoder",
    "Member",
    "build_member",
    "combine",
    "fit_alignment",
    "fit_pca",
    "load_bundle",
    "require_combination",
    "save_bundle",
]
