"""Builds the compiled modules; everything else stands in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

# No -march: the code runs on any x86-64, wider instructions are chosen at run time.
FAST = Extension(
    "s3backer._fast", ["s3backer/_fast.pyx"], extra_compile_args=["-O3", "-pthread"], extra_link_args=["-pthread"]
)

READ_AHEAD = Extension("s3backer._readahead", ["s3backer/_readahead.pyx"], extra_compile_args=["-O3"])

LANE = Extension(
    "s3backer._lane", ["s3backer/_lane.pyx"], extra_compile_args=["-O3", "-pthread"], extra_link_args=["-pthread"]
)

PARKING = Extension(
    "s3backer._parking", ["s3backer/_parking.pyx"], extra_compile_args=["-O3", "-pthread"], extra_link_args=["-pthread"]
)

CHECKSUM = Extension("s3backer._checksum", ["s3backer/_checksum.pyx"], extra_compile_args=["-O3"])

JOURNAL = Extension(
    "s3backer._journal", ["s3backer/_journal.pyx"], extra_compile_args=["-O3", "-pthread"], extra_link_args=["-pthread"]
)

setup(ext_modules=cythonize([FAST, READ_AHEAD, LANE, PARKING, CHECKSUM, JOURNAL], language_level=3))
