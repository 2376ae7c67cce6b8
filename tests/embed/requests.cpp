// Requests that together set every parameter; test_embed.py makes the same in Python.
#include <cstdint>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "checks.hpp"

using namespace telecine;

namespace {

// Values that Python computes too, to the bit.
std::vector<std::uint8_t> pattern(std::int64_t count) {
    std::vector<std::uint8_t> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint8_t>(i * 37 % 251);
    return values;
}

std::vector<float> fractions(std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 37 % 251) / 250.0f;
    return values;
}

using Strings = std::vector<std::string>;
using Numbers = std::vector<double>;

Video guided(Pipeline& pipe) {
    Request request;
    request.prompt = Strings{"a red ball rolls to the left", "ein blaues Quadrat, größer"};
    request.negative_prompt = "white";
    request.height = 64;
    request.width = 96;
    request.num_frames = 17;
    request.frame_rate = 24.5;
    request.num_inference_steps = 3;
    request.guidance_scale = Numbers{3, 2.5, 2};
    request.guidance_rescale = 0.5;
    request.cfg_star = true;
    request.stg_scale = 0.5;
    request.stg_mode = "attention_skip";
    request.stg_blocks = std::vector<std::vector<int>>{{1, 2}, {2}, {3}};
    request.num_videos_per_prompt = 2;
    request.seed = std::vector<std::int64_t>{1, 2, 3, -4};
    request.decode_timestep = 0.05;
    request.decode_noise_scale = Numbers{0.02, 0.025, 0.03, 0.035};
    request.output_type = "np";
    request.max_sequence_length = 32;
    request.tiling = "seamless";
    request.tile_size = 64;
    request.tile_stride = 32;
    request.tile_frames = 16;
    request.tile_frame_stride = 8;
    return pipe.generate(request);
}

Video conditioned(Pipeline& pipe) {
    const auto embeds = fractions(2 * 16 * 96), mask = std::vector<float>(16, 1.0f);
    const auto image = pattern(40 * 64 * 3);
    const auto clip = fractions(9 * 64 * 64 * 3);
    Request request;
    request.prompt_embeds = ArrayView(embeds.data(), {1, 16, 96});
    request.prompt_attention_mask = ArrayView(mask.data(), {1, 16});
    request.negative_prompt_embeds = ArrayView(embeds.data() + 16 * 96, {1, 16, 96});
    request.negative_prompt_attention_mask = ArrayView(mask.data(), {1, 16});
    // Rows of 64 pixels, of which 32 are the image.
    request.conditions = {{ArrayView(image.data(), {40, 32, 3}, {64 * 3, 3, 1}), {}, 16, 0.75},
                          {{}, ArrayView(clip.data(), {9, 64, 64, 3}), 0, 1.0}};
    request.image_cond_noise_scale = 0.1;
    request.height = 64;
    request.width = 64;
    request.num_frames = 17;
    request.timesteps = Numbers{1000, 700, 300};
    request.guidance_sigmas = Numbers{1, 0.5};
    request.guidance_scale = Numbers{4, 2};
    request.memory_limit = "1GiB";
    request.seed = 7;
    return pipe.generate(request);
}

Video changed(Pipeline& pipe) {
    const auto latents = fractions(48 * 2 * 2 * 2);
    Request request = small(3);
    request.pipeline = "LTXConditionPipeline";
    request.latents = ArrayView(latents.data(), {1, 48, 2, 2, 2});
    request.denoise_strength = 0.6;
    request.num_inference_steps = 5;
    request.memory_limit = 1 << 30;
    request.output_type = "latent";
    return pipe.generate(request);
}

Video in_two_stages(Pipeline& pipe) {
    const auto image = pattern(64 * 64 * 3);
    Request request;
    request.preset = "recommended";
    request.prompt = "a red ball";
    request.image = ArrayView(image.data(), {64, 64, 3});
    request.height = 128;
    request.width = 128;
    request.num_frames = 9;
    request.num_inference_steps = 3;
    request.output_type = "uint8";
    request.seed = 1;
    SecondStage& second = request.second_stage.emplace();
    second.downscale_factor = 0.5;
    second.adain_factor = 0.5;
    second.tone_map_compression_ratio = 0.25;
    second.denoise_strength = 0.5;
    second.num_inference_steps = 4;
    second.guidance_scale = 1.5;
    second.guidance_rescale = 0.25;
    second.cfg_star = true;
    second.stg_scale = 0.25;
    second.stg_mode = "attention_skip";
    second.stg_blocks = std::vector<int>{2};
    second.image_cond_noise_scale = 0.05;
    return pipe.generate(request);
}

Video with_second_timesteps(Pipeline& pipe) {
    Request request = small(2);
    request.height = 128;
    request.width = 128;
    SecondStage& second = request.second_stage.emplace();
    second.downscale_factor = 0.5;
    second.denoise_strength = 0.999;
    second.timesteps = Numbers{900, 500};
    second.guidance_sigmas = Numbers{1, 0.6};
    second.guidance_scale = Numbers{3, 2};
    return pipe.generate(request);
}

template <class T>
void write(const Array& array, const std::string& path) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(array.data<T>()), static_cast<std::streamsize>(array.size() * sizeof(T)));
    expect(file.good(), "the frames are written");
}

}  // namespace

// OUT: writes OUT/NAME of each request.
void make_requests(const Given& given) {
    Runtime runtime(given.environment);
    Pipeline pipe = runtime.load(given.bundle, one_thread());
    const std::string out = given.more.at(0) + "/";
    const Video video = guided(pipe);
    expect(video.frames.shape() == std::vector<std::int64_t>{4, 17, 64, 96, 3}, "the shape of the frames");
    expect(video.seeds == std::vector<std::int64_t>{1, 2, 3, -4} && video.frame_rate == 24.5, "seeds and rate");
    expect(video.timings.at("total") >= video.timings.at("denoise"), "timings");
    write<float>(video.frames, out + "guided");
    write<float>(conditioned(pipe).frames, out + "conditioned");
    write<float>(changed(pipe).latents, out + "changed");
    write<std::uint8_t>(in_two_stages(pipe).frames, out + "in_two_stages");
    write<std::uint8_t>(with_second_timesteps(pipe).frames, out + "with_second_timesteps");
}
