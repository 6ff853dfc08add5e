"""A tiny Qwen-Image-2.1 with random weights: no trained one is small enough to keep, and the code path needs one."""

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def build(folder):
    """Write the checkpoint below `folder` as `QwenImage21Pipeline.from_pretrained` reads it."""
    import diffusers
    import torch
    import transformers

    from qwen_tiny import architecture

    torch.manual_seed(0)
    tokenizer = architecture.build_tokenizer()
    processor = transformers.Qwen3VLProcessor(
        # Not to shrink pictures: the transformer expects one vision token for every 32 x 32 pixels.
        image_processor=transformers.Qwen2VLImageProcessor(
            patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 4096 * 4096}
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=CHAT,
    )
    pipe = diffusers.QwenImage21Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=diffusers.AutoencoderKLQwenImage21(
            base_dim=8, decoder_base_dim=8, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1, attn_scales=[]
        ),
        text_encoder=text_encoder(tokenizer).eval(),
        processor=processor,
        transformer=diffusers.QwenImage21Transformer2DModel(
            num_layers=2, attention_head_dim=32, num_attention_heads=2, context_in_dim=32, axes_dims_rope=(8, 12, 12)
        ),
    )
    pipe.save_pretrained(folder)


def stock_pipeline(folder):
    """The checkpoint as diffusers loads it, in float32."""
    import diffusers
    import torch

    pipe = diffusers.QwenImage21Pipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def text_encoder(tokenizer):
    import transformers

    def token(name):
        return tokenizer.convert_tokens_to_ids(f"<|{name}|>")

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    config = transformers.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("image_pad"),
        video_token_id=token("video_pad"),
        vision_start_token_id=token("vision_start"),
        vision_end_token_id=token("vision_end"),
    )
    return transformers.Qwen3VLForConditionalGeneration(config)
