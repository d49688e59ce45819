"""What videos and sounds cost: files, all new, and again with their features kept.

    python benchmarks/video_audio.py [NAME ...] [--runs 3] [--profile] [--output FILE] [--tiny]

The shapes of Qwen2-VL-7B and Qwen2-Audio-7B, as `media_workload.py` times them: 32 requests of one
file and 64 tokens in, 128 out. A video is an MP4 of 640x480 and 4 seconds, of which 16 frames are
taken; a sound is a stereo WAV of 44.1 kHz and 10 seconds. Decoding is part of a run. Prints one
JSON line a model, and exits with 1 where a timed run compiled a program, or a repeated medium was
encoded again. --profile adds one run under JAX's profiler, for the share of its time in which a
kernel ran. --tiny takes the models of tests/fixtures and a few requests.
"""

import functools
import io
import sys
from typing import Any

import av
import images
import media_workload
import numpy as np
import soundfile
from media_workload import Workload

QWEN_AUDIO: dict[str, Any] = {
    "architectures": ["Qwen2AudioForConditionalGeneration"],
    "audio_config": {
        "d_model": 1280,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "encoder_layers": 32,
        "max_source_positions": 1500,
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 128,
    },
    "audio_token_index": 151646,
    "model_type": "qwen2_audio",
    "text_config": {
        "intermediate_size": 11008,
        "max_position_embeddings": 8192,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-05,
        "vocab_size": 156032,
    },
    "vocab_size": 156032,
}
QWEN_7B = images.QWEN | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vision_config": images.QWEN["vision_config"] | {"hidden_size": 3584},
    "vocab_size": 152064,
}
WHISPER = {
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "n_fft": 400,
    "sampling_rate": 16000,
}


def video(width: int, height: int, frames: int, noise: np.random.Generator) -> bytes:
    """A brighter square that moves over a ground of noise, as an MP4 of 30 frames a second."""
    ground = noise.integers(128, size=(height, width, 3), dtype=np.uint8)
    edge = min(width, height) // 4
    file = io.BytesIO()
    with av.open(file, "w", "mp4") as container:
        stream = container.add_stream("mpeg4", rate=30, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            shown, left = ground.copy(), (width - edge) * i // frames
            shown[:edge, left : left + edge] += 100
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown)))
        container.mux(stream.encode())
    return file.getvalue()


def sound(seconds: float, noise: np.random.Generator) -> bytes:
    """Noise, as a stereo WAV of 44.1 kHz."""
    file = io.BytesIO()
    samples = noise.normal(0, 0.1, (int(44100 * seconds), 2))
    soundfile.write(file, samples, 44100, format="WAV")
    return file.getvalue()


WORKLOADS = {
    "qwen2-vl-7b": Workload(
        QWEN_7B,
        images.WORKLOADS["qwen2-vl-2b"].preprocessor,
        "video",
        functools.partial(video, 640, 480, 120),
        "MP4 files of 640x480, 4 s, 16 frames taken",
        {"mm_processor_kwargs": {"num_frames": 16}, "mm_encoder_cache_gb": 1},
        requests=32,
    ),
    "qwen2-audio-7b": Workload(
        QWEN_AUDIO,
        WHISPER,
        "audio",
        functools.partial(sound, 10),
        "WAV files of 44.1 kHz, stereo, 10 s",
        requests=32,
    ),
}
FEW = {"num_frames": 6, "min_pixels": 256, "max_pixels": 768}
SMALL = {
    "qwen2-vl-7b": ("vision/qwen2_vl", {"mm_processor_kwargs": FEW}),
    "qwen2-audio-7b": ("audio/qwen2_audio", {}),
}

if __name__ == "__main__":
    about = (__doc__ or "").splitlines()[0]
    sys.exit(media_workload.main("video_audio", about, WORKLOADS, SMALL))
