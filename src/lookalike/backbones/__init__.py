"""Members of encoders as torch modules: backbone and head with their weights, and the bundles that keep them."""

from lookalike.backbones.adapt import Adaptation, GeneralizedMean, family_of
from lookalike.backbones.alignment import fit_alignment
from lookalike.backbones.bundle import load_bundle, save_bundle
from lookalike.backbones.member import Member, members_of
from lookalike.backbones.pretrained import build_member
from lookalike.backbones.projection import EMBEDDING_DIM, Whitening, fit_pca, fit_whitened

__all__ = [
    "EMBEDDING_DIM",
    "Adaptation",
    "GeneralizedMean",
    "Member",
    "Whitening",
    "build_member",
    "family_of",
    "fit_alignment",
    "fit_pca",
    "fit_whitened",
    "load_bundle",
    "members_of",
    "save_bundle",
]
