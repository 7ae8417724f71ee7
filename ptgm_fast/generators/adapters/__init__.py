"""Published generators, one module per family: the network as published, and `load`, which builds it from files."""

# URI scheme: (the module here, what follows the scheme, what that is).
ADAPTERS = {
    "biggan-deep": (
        "biggan_deep",
        "DIR_OR_FILE",
        "BigGAN-deep in Hugging Face's layout (config.json and weights), or ORG/NAME in the local Hugging Face cache",
    ),
    "biggan": ("biggan", "FILE", "BigGAN in BigGAN-PyTorch's layout"),
    "stylegan2-ada": (
        "stylegan2",
        "FILE",
        "StyleGAN2-ADA with class labels, as `ptgm-fast convert` writes it",
    ),
    "stylegan3": (
        "stylegan3",
        "FILE",
        "StyleGAN3 with class labels, as `ptgm-fast convert` writes it",
    ),
    "diffusers": (
        "dit",
        "DIR",
        "a class-conditional DiT pipeline saved by diffusers, or ORG/NAME in the local Hugging Face cache",
    ),
    "module": (
        "own_module",
        "PACKAGE.MODULE:FACTORY",
        "a torch.nn.Module of your own, ?weights=FILE",
    ),
}
