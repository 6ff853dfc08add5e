"""ControlNets for the tiny transformer with random weights, for tests of how they are loaded and drawn with."""

import torch


def random_controlnet(tiny, folder, blocks=2, **config):
    """Write one to `folder`, which changes pictures thoroughly. `config`: other values than the transformer's."""
    from diffusers import QwenImageControlNetModel, QwenImageTransformer2DModel

    own = dict(QwenImageTransformer2DModel.load_config(tiny / "generate/transformer"))
    names = (
        "patch_size", "in_channels", "out_channels", "attention_head_dim", "num_attention_heads",
        "joint_attention_dim", "axes_dims_rope",
    )  # fmt: skip
    torch.manual_seed(0)
    net = QwenImageControlNetModel(**{name: own[name] for name in names} | {"num_layers": blocks} | config)
    for layer in (*net.controlnet_blocks, net.controlnet_x_embedder):
        torch.nn.init.normal_(layer.weight, std=0.05)
    net.to(torch.bfloat16).save_pretrained(folder)
    return folder
