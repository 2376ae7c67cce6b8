// What each check is given, and how it says that something is wrong.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "telecine/telecine.hpp"

struct Given {
    telecine::RuntimeOptions environment;
    std::string bundle;
    std::vector<std::string> more;  // what a check takes beside
};

inline void expect(bool right, const std::string& what) {
    if (!right) throw std::logic_error("not so: " + what);
}

// The error of this kind that a call throws, and no other.
template <class Kind, class Call>
Kind expect_error(const std::string& says, Call&& call) {
    try {
        call();
    } catch (const Kind& error) {
        const std::string text = error.what();
        expect(text.find(says) != std::string::npos, "\"" + text + "\" says \"" + says + "\"");
        return error;
    }
    throw std::logic_error("no error says " + says);
}

// A small video in few steps.
inline telecine::Request small(std::int64_t seed = 0) {
    telecine::Request request;
    request.prompt = "a red ball rolls to the left over a dark green floor";
    request.height = 64;
    request.width = 64;
    request.num_frames = 9;
    request.num_inference_steps = 3;
    request.seed = seed;
    request.output_type = "uint8";
    return request;
}

// One thread of ONNX Runtime: the tests' threads are the host's.
inline telecine::LoadOptions one_thread() {
    telecine::LoadOptions options;
    options.backend = "onnxruntime";
    options.device = "cpu";
    options.options.emplace().threads = 1;
    return options;
}

inline std::string bytes(const telecine::Array& frames) {
    const auto* data = reinterpret_cast<const char*>(frames.data<std::uint8_t>());
    return {data, frames.size()};
}

void check_errors(const Given& given);
void check_bad_environments(const Given& given);
void check_cancelling(const Given& given);
void check_restart(const Given& given);
void check_shutdown(const Given& given);
void check_streams(const Given& given);
void check_soak(const Given& given);
void make_requests(const Given& given);
