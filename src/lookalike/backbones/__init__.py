"""Encoders: backbone + head + preprocessing, single or several combined, with their weights and bundles."""

from lookalike.backbones.adapt import Adaptation, GeneralizedMean, family_of
from lookalike.backbones.alignment import fit_alignment
from lookalike.backbones.bundle import load_bundle, save_bundle
from lookalike.backbones.encoder import COMBINATIONS, Encoder, combine, require_combination
from lookalike.backbones.member import Member
from lookalike.backbones.pretrained import build_member
from lookalike.backbones.projection import EMBEDDING_DIM, Whitening, fit_pca, fit_whitened

__all__ = [
    "COMBINATIONS",
    "EMBEDDING_DIM",
    "Adaptation",
    "Encoder",
    "GeneralizedMean",
    "Member",
    "Whitening",
    "build_member",
    "combine",
    "family_of",
    "fit_alignment",
    "fit_pca",
    "fit_whitened",
    "load_bundle",
    "require_combination",
    "save_bundle",
]
