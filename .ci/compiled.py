"""Import once what the study's processes import, so that Python keeps the compiled files.

    .venv/bin/python .ci/compiled.py

Installers leave compiling to the first import. Where PYTHONDONTWRITEBYTECODE is set, as in many
container images, every process compiles anew, which doubles the time that it takes to start. This
writes the compiled files whatever is set; later processes read them. What cannot be imported, or
written, is left to them.
"""

import contextlib
import importlib
import pkgutil
import sys

# Beside the package's own modules: what they import when first needed, and the tools around them.
OTHERS = (
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.loaders",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip",
    "peft.tuners.lora", "open_clip", "timm", "torch._dynamo", "torch.utils.flop_counter",
    "torchvision", "accelerate", "ray", "pandas", "scipy.stats", "matplotlib.pyplot", "seaborn",
    "mlxtend.data", "papermill.cli", "nbconvert", "nbclient", "ipykernel.kernelapp", "IPython",
    "matplotlib_inline.backend_inline", "jupyter_book.cli.main", "sphinx.cmd.build", "myst_nb",
    "sphinx.ext.autodoc", "pytest", "hypothesis", "xdist",
)  # fmt: skip


def main() -> None:
    """Import the package's modules and the others, each as far as it goes."""
    sys.dont_write_bytecode = False
    import datadream

    own = (one.name for one in pkgutil.walk_packages(datadream.__path__, "datadream."))
    for name in (*OTHERS, *(one for one in own if not one.endswith("__main__"))):
        with contextlib.suppress(Exception):
            importlib.import_module(name)


if __name__ == "__main__":
    main()
