"""Our Ed25519 against RFC 8032 section 7.1 and against a compiled library."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.node import ed25519

# (seed, public key, message, signature), tests 1, 2 and 3 of RFC 8032 section 7.1.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


class TestSign:
    @pytest.mark.parametrize(("seed", "public", "message", "signature"), VECTORS)
    def test_agrees_with_the_vectors_of_the_standard(
        self, seed: str, public: str, message: str, signature: str
    ) -> None:
        raw = bytes.fromhex(seed)
        assert ed25519.public_key(seed=raw).hex() == public
        assert ed25519.sign(seed=raw, message=bytes.fromhex(message)).hex() == signature

    @settings(max_examples=50, deadline=None)
    @given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=300))
    def test_agrees_with_a_compiled_library(self, seed: bytes, message: bytes) -> None:
        theirs = Ed25519PrivateKey.from_private_bytes(seed)
        public = theirs.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        assert ed25519.public_key(seed=seed) == public
        assert ed25519.sign(seed=seed, message=message) == theirs.sign(message)

    @pytest.mark.parametrize("length", [0, 31, 33, 64])
    def test_refuses_a_seed_of_another_length(self, length: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            ed25519.sign(seed=bytes(length), message=b"")
