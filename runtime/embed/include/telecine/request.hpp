// What a video is asked for with: every parameter of `telecine.Pipeline.generate`, by its name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "telecine/arrays.hpp"

namespace telecine {

// One value for all, or a list of them. Converts from either.
template <class T>
class OneOrMany {
 public:
    template <class U, std::enable_if_t<std::is_convertible_v<U&&, T>, int> = 0>
    OneOrMany(U&& one) : value_(std::in_place_index<0>, std::forward<U>(one)) {}
    OneOrMany(std::vector<T> many) : value_(std::in_place_index<1>, std::move(many)) {}

    const std::variant<T, std::vector<T>>& value() const noexcept { return value_; }

 private:
    std::variant<T, std::vector<T>> value_;
};

// A file, or (height, width, 3) bytes or floats in [0, 1]. For a video: (frames, height, width, 3).
class Picture {
 public:
    Picture(std::string path) : value_(std::move(path)) {}
    Picture(const char* path) : value_(std::string(path)) {}
    Picture(ArrayView pixels) : value_(std::move(pixels)) {}

    const std::variant<std::string, ArrayView>& value() const noexcept { return value_; }

 private:
    std::variant<std::string, ArrayView> value_;
};

// An image or a video (one of the two) that the clip holds from `frame_index` on, with `strength` from 0 to 1.
struct Condition {
    std::optional<Picture> image;
    std::optional<Picture> video;
    int frame_index = 0;
    double strength = 1.0;
    std::optional<int> index = std::nullopt;  // LTX-2: of a latent frame, in place of frame_index; below 0 from the end
    std::optional<int> crf = std::nullopt;    // LTX-2: how an image is compressed first
};

// Bytes, or a text such as "8GiB".
class MemoryLimit {
 public:
    template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
    MemoryLimit(T bytes) : value_(static_cast<std::int64_t>(bytes)) {}
    MemoryLimit(std::string text) : value_(std::move(text)) {}
    MemoryLimit(const char* text) : value_(std::string(text)) {}

    const std::variant<std::int64_t, std::string>& value() const noexcept { return value_; }

 private:
    std::variant<std::int64_t, std::string> value_;
};

// The second of two stages: upsampled, then denoised again. What is not set has telecine's default.
struct SecondStage {
    std::optional<double> downscale_factor;
    std::optional<double> adain_factor;
    std::optional<double> tone_map_compression_ratio;
    std::optional<double> denoise_strength;
    std::optional<int> num_inference_steps;
    std::optional<std::vector<double>> timesteps;
    std::optional<std::vector<double>> sigmas;  // LTX-2, as all below that LTX-Video has not
    std::optional<double> noise_scale;
    std::optional<OneOrMany<double>> guidance_scale;
    std::optional<OneOrMany<double>> guidance_rescale;
    std::optional<std::vector<double>> guidance_sigmas;
    std::optional<bool> cfg_star;
    std::optional<OneOrMany<double>> stg_scale;
    std::optional<std::string> stg_mode;
    std::optional<OneOrMany<std::vector<int>>> stg_blocks;
    std::optional<double> image_cond_noise_scale;
    std::optional<std::vector<int>> spatio_temporal_guidance_blocks;
    std::optional<OneOrMany<double>> modality_scale;
    std::optional<OneOrMany<double>> audio_guidance_scale;
    std::optional<OneOrMany<double>> audio_guidance_rescale;
    std::optional<OneOrMany<double>> audio_stg_scale;
    std::optional<OneOrMany<double>> audio_modality_scale;
};

// A request. What is not set comes from `preset`, then from the diffusers pipeline that the bundle stands for: the
// README's table of `generate` says what each does and what it takes. Texts are UTF-8.
struct Request {
    // What is seen. One prompt or a batch of them, or the embeddings of one; embeddings need their masks.
    std::optional<OneOrMany<std::string>> prompt;
    std::optional<OneOrMany<std::string>> negative_prompt;
    std::optional<ArrayView> prompt_embeds;           // (prompts, L, D)
    std::optional<ArrayView> prompt_attention_mask;   // (prompts, L): 1 text, 0 padding
    std::optional<ArrayView> negative_prompt_embeds;  // as the two above
    std::optional<ArrayView> negative_prompt_attention_mask;
    std::optional<int> max_sequence_length;

    // How large, how long, how many, and from which noise. B = prompts * num_videos_per_prompt.
    std::optional<int> height;      // a multiple of 32
    std::optional<int> width;       // a multiple of 32
    std::optional<int> num_frames;  // 8k + 1
    std::optional<double> frame_rate;
    std::optional<double> motion_speed;  // LTX-2: below 1 is slow motion
    std::optional<int> num_videos_per_prompt;
    std::optional<OneOrMany<std::int64_t>> seed;  // one, or one a video

    // The denoising.
    std::optional<int> num_inference_steps;
    std::optional<std::vector<double>> timesteps;
    std::optional<std::vector<double>> sigmas;  // LTX-2
    std::optional<OneOrMany<double>> guidance_scale;  // lists: one a step, or one a sigma below
    std::optional<OneOrMany<double>> guidance_rescale;
    std::optional<std::vector<double>> guidance_sigmas;
    std::optional<bool> use_dynamic_cfg;  // CogVideoX
    std::optional<bool> cfg_star;
    std::optional<OneOrMany<double>> stg_scale;
    std::optional<std::string> stg_mode;
    std::optional<OneOrMany<std::vector<int>>> stg_blocks;
    std::optional<std::vector<int>> spatio_temporal_guidance_blocks;  // LTX-2, as what follows
    std::optional<OneOrMany<double>> modality_scale;
    std::optional<OneOrMany<double>> audio_guidance_scale;  // of the sound; 0 is the video's
    std::optional<OneOrMany<double>> audio_guidance_rescale;
    std::optional<OneOrMany<double>> audio_stg_scale;
    std::optional<OneOrMany<double>> audio_modality_scale;
    std::optional<bool> use_cross_timestep;
    std::optional<SecondStage> second_stage;

    // What it begins from.
    std::optional<OneOrMany<Picture>> image;  // the first frame: one, or one a video
    std::optional<int> image_crf;             // LTX-2: how an image is compressed first
    std::optional<std::vector<Condition>> conditions;
    std::optional<Picture> video;    // CogVideoX: what is made anew
    std::optional<double> strength;  // and how much of it
    std::optional<double> image_cond_noise_scale;
    std::optional<ArrayView> latents;  // (B, T, C), or (B, C, F, H, W) with a denoise_strength
    std::optional<double> denoise_strength;
    std::optional<ArrayView> audio_latents;  // LTX-2: (B, C, S, M)
    std::optional<double> noise_scale;       // and the share of noise that both latents begin with

    // The decoding, and what comes out.
    std::optional<OneOrMany<double>> decode_timestep;  // one, or one a video
    std::optional<OneOrMany<double>> decode_noise_scale;
    std::optional<std::string> output_type;  // "np": floats in [0, 1]; "uint8"; "latent"
    std::optional<std::string> tiling;       // "auto", "off", "seamless", "diffusers"
    std::optional<int> tile_size;
    std::optional<int> tile_stride;
    std::optional<int> tile_frames;
    std::optional<int> tile_frame_stride;
    std::optional<MemoryLimit> memory_limit;

    std::optional<std::string> pipeline;  // another pipeline class's host math
    std::optional<std::string> preset;    // settings of the bundle, such as "recommended"
};

}  // namespace telecine
