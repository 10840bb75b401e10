"""Configs of tiny models of diffusers: the layers of the released ones, with few channels.

Of each pipeline its models by the names that it has for them. Of LTX-2 there are two versions.
"""

from collections.abc import Mapping
from typing import Any

from ...models.pipelines.folder import Part

__all__ = ["HELIOS", "LTX2", "LTX2_UPSAMPLERS", "ZIMAGE"]

_LTX2_TRANSFORMER: Mapping[str, Any] = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "cross_attention_dim": 128,
    "audio_in_channels": 8,
    "audio_out_channels": 8,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 64,
    "num_layers": 2,
    "caption_channels": 24,
    "rope_type": "split",
}
_LTX2_VAE: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "patch_size": 4,
    "decoder_causal": False,
    "encoder_causal": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
    "layers_per_block": (1, 1, 1, 1, 1),
}
_LTX2_AUDIO_VAE = Part(
    "AutoencoderKLLTX2Audio",
    {
        "base_channels": 8,
        "output_channels": 2,
        "ch_mult": (1, 2, 4),
        "num_res_blocks": 1,
        "attn_resolutions": None,
        "in_channels": 2,
        "resolution": 32,
        "latent_channels": 2,
        "norm_type": "pixel",
        "causality_axis": "height",
        "mid_block_add_attention": False,
        "sample_rate": 16000,
        "mel_hop_length": 160,
        "is_causal": True,
        "mel_bins": 16,
    },
)
_LTX2_VOCODER: Mapping[str, Any] = {
    "in_channels": 32,
    "hidden_channels": 32,
    "out_channels": 2,
    "resnet_kernel_sizes": [3],
    "resnet_dilations": [[1, 3, 5]],
}
_LTX2_CONNECTORS: Mapping[str, Any] = {
    "caption_channels": 24,  # the text encoder's width, and layers that it gives
    "text_proj_in_factor": 3,
    "connector_rope_base_seq_len": 32,
    "rope_type": "split",
    "video_connector_num_attention_heads": 4,
    "video_connector_num_layers": 1,
    "video_connector_num_learnable_registers": 4,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": 4,
}

LTX2: Mapping[str, Mapping[str, Part]] = {
    "2.0": {
        "transformer": Part("LTX2VideoTransformer3DModel", _LTX2_TRANSFORMER),
        "vae": Part(
            "AutoencoderKLLTX2Video",
            {
                **_LTX2_VAE,
                "block_out_channels": (8, 16, 32, 64),
                "decoder_block_out_channels": (8, 16, 32),
                "decoder_layers_per_block": (1, 1, 1, 1),
                "upsample_factor": (2, 2, 2),
                "upsample_residual": (True, True, True),
                "decoder_spatial_padding_mode": "reflect",
            },
        ),
        "audio_vae": _LTX2_AUDIO_VAE,
        "connectors": Part(
            "LTX2TextConnectors",
            {
                **_LTX2_CONNECTORS,
                "video_connector_attention_head_dim": 6,
                "audio_connector_attention_head_dim": 6,
            },
        ),
        "vocoder": Part(
            "LTX2Vocoder",
            {
                **_LTX2_VOCODER,
                "upsample_kernel_sizes": [4, 4],
                "upsample_factors": [2, 2],
                "output_sampling_rate": 16000,
            },
        ),
    },
    "2.3": {
        "transformer": Part(
            "LTX2VideoTransformer3DModel",
            {
                **_LTX2_TRANSFORMER,
                "gated_attn": True,
                "cross_attn_mod": True,
                "audio_gated_attn": True,
                "audio_cross_attn_mod": True,
                "use_prompt_embeddings": False,
                "perturbed_attn": True,
            },
        ),
        "vae": Part(
            "AutoencoderKLLTX2Video",
            {
                **_LTX2_VAE,
                "block_out_channels": (8, 16, 32, 32),
                "decoder_block_out_channels": (8, 16, 16, 32),
                "decoder_layers_per_block": (1, 1, 1, 1, 1),
                "decoder_spatio_temporal_scaling": (True,) * 4,
                "decoder_inject_noise": (False,) * 5,
                "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
                "upsample_residual": (False,) * 4,
                "upsample_factor": (2, 2, 1, 2),
                "decoder_spatial_padding_mode": "zeros",
            },
        ),
        "audio_vae": _LTX2_AUDIO_VAE,
        "connectors": Part(
            "LTX2TextConnectors",
            {
                **_LTX2_CONNECTORS,
                "video_connector_attention_head_dim": 32,
                "video_gated_attn": True,
                "video_hidden_dim": 128,
                "audio_connector_attention_head_dim": 16,
                "audio_gated_attn": True,
                "audio_hidden_dim": 64,
                "per_modality_projections": True,
                "proj_bias": True,
            },
        ),
        "vocoder": Part(
            "LTX2VocoderWithBWE",
            {
                **_LTX2_VOCODER,
                "upsample_kernel_sizes": [11, 4, 4],
                "upsample_factors": [5, 2, 2],
                "bwe_in_channels": 32,
                "bwe_hidden_channels": 32,
                "bwe_upsample_kernel_sizes": [12, 11],
                "bwe_upsample_factors": [6, 5],  # their product is three times the hop
                "bwe_resnet_kernel_sizes": [3],
                "bwe_resnet_dilations": [[1, 3, 5]],
                "filter_length": 64,
                "hop_length": 10,
                "window_length": 64,
                "num_mel_channels": 16,
                "input_sampling_rate": 16000,
                "output_sampling_rate": 48000,
            },
        ),
    },
}

_LTX2_UPSAMPLER: Mapping[str, Any] = {
    "in_channels": 8,
    "mid_channels": 64,
    "num_blocks_per_stage": 2,
    "dims": 3,
}
LTX2_UPSAMPLERS: Mapping[str, Part] = {
    "2.0": Part(
        "LTX2LatentUpsamplerModel",
        {**_LTX2_UPSAMPLER, "use_rational_resampler": True, "rational_spatial_scale": 2.0},
    ),
    "2.3": Part("LTX2LatentUpsamplerModel", {**_LTX2_UPSAMPLER, "use_rational_resampler": False}),
}

HELIOS: Mapping[str, Part] = {
    "transformer": Part(
        "HeliosTransformer3DModel",
        {
            "patch_size": (1, 2, 2),
            "num_attention_heads": 4,
            "attention_head_dim": 24,
            "in_channels": 16,
            "out_channels": 16,
            "text_dim": 32,
            "freq_dim": 32,
            "ffn_dim": 128,
            "num_layers": 2,
            "cross_attn_norm": True,
            "rope_dim": (8, 8, 8),
            "has_multi_term_memory_patch": True,
            "guidance_cross_attn": True,
            "zero_history_timestep": True,
        },
    ),
    "vae": Part(
        "AutoencoderKLWan",
        {
            "base_dim": 8,
            "z_dim": 16,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
        },
    ),
}

ZIMAGE: Mapping[str, Part] = {
    "transformer": Part(
        "ZImageTransformer2DModel",
        {
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 16,
            "dim": 128,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 4,
            "n_kv_heads": 4,
            "norm_eps": 1e-5,
            "qk_norm": True,
            "cap_feat_dim": 32,
            "rope_theta": 256.0,
            "t_scale": 1000.0,
            "axes_dims": [16, 8, 8],
            "axes_lens": [1024, 64, 64],
        },
    ),
    "vae": Part(
        "AutoencoderKL",
        {
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": [32, 32, 64, 64],
            "layers_per_block": 1,
            "latent_channels": 16,
            "norm_num_groups": 32,
            "sample_size": 64,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        },
    ),
}
