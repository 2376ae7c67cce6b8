// What the host asks for, as Python takes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "python.hpp"
#include "telecine/pipeline.hpp"
#include "telecine/runtime.hpp"

namespace telecine {

inline py::dtype dtype_in_numpy(DType dtype) {
    switch (dtype) {
        case DType::uint8:
            return py::dtype::of<std::uint8_t>();
        case DType::int32:
            return py::dtype::of<std::int32_t>();
        case DType::int64:
            return py::dtype::of<std::int64_t>();
        case DType::float32:
            return py::dtype::of<float>();
        case DType::float64:
            return py::dtype::of<double>();
    }
    throw RequestError("an array of no known type", "one of DType", "Make views by their constructor.");
}

// A name of a file, which need not be Unicode.
inline py::object path_in_python(const std::string& path) {
    auto name = py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefaultAndSize(path.data(), path.size()));
    if (!name) throw py::error_already_set();
    return name;
}

// Values of every type that a request has.
struct ToPython {
    static py::object of(bool value) { return py::bool_(value); }
    static py::object of(int value) { return py::int_(value); }
    static py::object of(std::int64_t value) { return py::int_(value); }
    static py::object of(double value) { return py::float_(value); }
    static py::object of(void* handle) { return py::int_(reinterpret_cast<std::uintptr_t>(handle)); }

    static py::object of(const std::string& value) {
        auto result = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(value.data(), value.size(), "strict"));
        if (result) return result;
        PyErr_Clear();
        throw RequestError("a text that is not UTF-8", "UTF-8", "Convert texts before they are asked for.");
    }

    // A copy: Python may keep what it is given for longer than the call.
    static py::object of(const ArrayView& view) {
        std::int64_t values = 1;
        for (std::int64_t length : view.shape) values *= length < 0 ? 0 : length;
        const bool strided = view.strides.empty() || view.strides.size() == view.shape.size();
        if ((!view.data && values) || !strided)
            throw RequestError(strided ? "a view of no memory" : "a view with strides for some of its axes",
                               "memory, and a stride for each axis or none", "Check what the view is made of.");
        const std::vector<py::ssize_t> shape(view.shape.begin(), view.shape.end());
        const std::vector<py::ssize_t> strides(view.strides.begin(), view.strides.end());
        if (values == 0) return py::array(dtype_in_numpy(view.dtype), shape);
        return py::array(dtype_in_numpy(view.dtype), shape, strides, view.data);
    }

    static py::object of(const Picture& picture) {
        const auto* path = std::get_if<std::string>(&picture.value());
        return path ? path_in_python(*path) : of(std::get<ArrayView>(picture.value()));
    }

    static py::object of(const MemoryLimit& limit) {
        return std::visit([](const auto& value) { return of(value); }, limit.value());
    }

    static py::object of(const Condition& condition) {
        return py::module_::import("telecine")
            .attr("Condition")(py::arg("image") = of(condition.image), py::arg("video") = of(condition.video),
                               py::arg("frame_index") = condition.frame_index,
                               py::arg("strength") = condition.strength, py::arg("index") = of(condition.index),
                               py::arg("crf") = of(condition.crf));
    }

    static py::object of(const SecondStage& stage);
    static py::object of(const OnnxRuntimeOptions& options);
    static py::object of(const Lora& lora) { return py::make_tuple(path_in_python(lora.file), lora.scale); }

    template <class T>
    static py::object of(const std::vector<T>& values) {
        py::list list;
        for (const auto& value : values) list.append(of(value));
        return list;
    }

    template <class T>
    static py::object of(const std::map<std::string, T>& values) {
        py::dict dict;
        for (const auto& [name, value] : values) dict[of(name)] = of(value);
        return dict;
    }

    template <class T>
    static py::object of(const OneOrMany<T>& values) {
        return std::visit([](const auto& value) { return of(value); }, values.value());
    }

    template <class T>
    static py::object of(const std::optional<T>& value) {
        return value ? of(*value) : py::none();
    }
};

// Parameters by name, of those that are set.
class Parameters {
 public:
    template <class T>
    void set(const char* name, const std::optional<T>& value) {
        if (value) given_[name] = ToPython::of(*value);
    }
    py::dict given() const { return given_; }

 private:
    py::dict given_;
};

// tests/embed compares these lists, the structs and Python's signatures.
#define TELECINE_SET(name) all.set(#name, from.name)

inline py::dict parameters(const SecondStage& from) {
    Parameters all;
    TELECINE_SET(downscale_factor);
    TELECINE_SET(adain_factor);
    TELECINE_SET(tone_map_compression_ratio);
    TELECINE_SET(denoise_strength);
    TELECINE_SET(num_inference_steps);
    TELECINE_SET(timesteps);
    TELECINE_SET(sigmas);
    TELECINE_SET(noise_scale);
    TELECINE_SET(guidance_scale);
    TELECINE_SET(guidance_rescale);
    TELECINE_SET(guidance_sigmas);
    TELECINE_SET(cfg_star);
    TELECINE_SET(stg_scale);
    TELECINE_SET(stg_mode);
    TELECINE_SET(stg_blocks);
    TELECINE_SET(image_cond_noise_scale);
    TELECINE_SET(spatio_temporal_guidance_blocks);
    TELECINE_SET(modality_scale);
    TELECINE_SET(audio_guidance_scale);
    TELECINE_SET(audio_guidance_rescale);
    TELECINE_SET(audio_stg_scale);
    TELECINE_SET(audio_modality_scale);
    return all.given();
}

inline py::dict parameters(const Request& from) {
    Parameters all;
    TELECINE_SET(prompt);
    TELECINE_SET(negative_prompt);
    TELECINE_SET(prompt_embeds);
    TELECINE_SET(prompt_attention_mask);
    TELECINE_SET(negative_prompt_embeds);
    TELECINE_SET(negative_prompt_attention_mask);
    TELECINE_SET(max_sequence_length);
    TELECINE_SET(height);
    TELECINE_SET(width);
    TELECINE_SET(num_frames);
    TELECINE_SET(frame_rate);
    TELECINE_SET(motion_speed);
    TELECINE_SET(num_videos_per_prompt);
    TELECINE_SET(seed);
    TELECINE_SET(num_inference_steps);
    TELECINE_SET(timesteps);
    TELECINE_SET(sigmas);
    TELECINE_SET(guidance_scale);
    TELECINE_SET(guidance_rescale);
    TELECINE_SET(guidance_sigmas);
    TELECINE_SET(cfg_star);
    TELECINE_SET(stg_scale);
    TELECINE_SET(stg_mode);
    TELECINE_SET(stg_blocks);
    TELECINE_SET(spatio_temporal_guidance_blocks);
    TELECINE_SET(modality_scale);
    TELECINE_SET(audio_guidance_scale);
    TELECINE_SET(audio_guidance_rescale);
    TELECINE_SET(audio_stg_scale);
    TELECINE_SET(audio_modality_scale);
    TELECINE_SET(use_cross_timestep);
    TELECINE_SET(second_stage);
    TELECINE_SET(image);
    TELECINE_SET(image_crf);
    TELECINE_SET(conditions);
    TELECINE_SET(video);
    TELECINE_SET(strength);
    TELECINE_SET(use_dynamic_cfg);
    TELECINE_SET(image_cond_noise_scale);
    TELECINE_SET(latents);
    TELECINE_SET(denoise_strength);
    TELECINE_SET(audio_latents);
    TELECINE_SET(noise_scale);
    TELECINE_SET(decode_timestep);
    TELECINE_SET(decode_noise_scale);
    TELECINE_SET(output_type);
    TELECINE_SET(tiling);
    TELECINE_SET(tile_size);
    TELECINE_SET(tile_stride);
    TELECINE_SET(tile_frames);
    TELECINE_SET(tile_frame_stride);
    TELECINE_SET(memory_limit);
    TELECINE_SET(pipeline);
    TELECINE_SET(preset);
    return all.given();
}

inline py::dict parameters(const OnnxRuntimeOptions& from) {
    Parameters all;
    TELECINE_SET(providers);
    TELECINE_SET(threads);
    TELECINE_SET(memory_arena);
    TELECINE_SET(memory_pattern);
    TELECINE_SET(gpu_mem_limit);
    TELECINE_SET(cudnn_conv_algo_search);
    TELECINE_SET(use_tf32);
    TELECINE_SET(provider_options);
    return all.given();
}

inline py::dict parameters(const LoadOptions& from) {
    Parameters all;
    TELECINE_SET(backend);
    TELECINE_SET(device);
    TELECINE_SET(engines);
    TELECINE_SET(options);
    TELECINE_SET(stream);
    TELECINE_SET(cuda_graphs);
    TELECINE_SET(prompt_cache);
    return all.given();
}

#undef TELECINE_SET

inline py::object ToPython::of(const SecondStage& stage) { return parameters(stage); }

inline py::object ToPython::of(const OnnxRuntimeOptions& options) {
    return py::module_::import("telecine").attr("OnnxRuntimeOptions")(**parameters(options));
}

}  // namespace telecine
