// The callback of a run: shows the host each step, and stops the run for it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "python.hpp"
#include "telecine/pipeline.hpp"

namespace telecine {

class Steps {
 public:
    // `closing`: whether the pipeline is being closed, which stops its run.
    Steps(RunOptions options, std::shared_ptr<const std::atomic<bool>> closing)
        : options_(std::move(options)), closing_(std::move(closing)), start_(std::chrono::steady_clock::now()) {
        if (options_.time_limit && !(options_.time_limit->count() > 0))  // NaN too
            throw RequestError("a time_limit of " + seconds(), "more than none", "Leave it unset for no limit.");
    }

    // Throws Cancelled where the host has stopped the run already.
    void check_before() {
        if (should_stop("before its first step")) throw_reason();
    }

    // Throw why the run was stopped, which telecine knows as a callback's answer only.
    [[noreturn]] void throw_reason() const {
        if (thrown_) std::rethrow_exception(thrown_);
        throw Cancelled(reason_, "a run to its end", "Ask again, with a new Cancellation.");
    }

    // As `telecine.Pipeline.generate` calls it: the latents to go on with, or False.
    // Models that make sound give a pair, of which the host is shown the video's.
    py::object operator()(int step, int steps, double sigma, py::object given) {
        const bool pair = py::isinstance<py::tuple>(given);
        const py::object latents = pair ? py::object(py::tuple(given)[0]) : given;
        auto values = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(latents);
        if (!values) throw py::error_already_set();
        if (!values.writeable()) values = py::array_t<float>(values.request());
        const std::vector<std::int64_t> shape(values.shape(), values.shape() + values.ndim());
        float* data = values.mutable_data();
        bool stop;
        {
            py::gil_scoped_release unlock;
            const std::string when = "after step " + std::to_string(step + 1) + " of " + std::to_string(steps);
            stop = !show(Progress{step, steps, sigma, data, shape}, when) || should_stop(when);
        }
        if (stop) return py::bool_(false);
        if (pair) return py::make_tuple(std::move(values), py::tuple(given)[1]);
        return std::move(values);
    }

 private:
    // Whether the host wants to go on.
    bool show(const Progress& progress, const std::string& when) noexcept {
        try {
            if (!options_.on_step || options_.on_step(progress)) return true;
            reason_ = "on_step stopped the run " + when;
        } catch (...) {  // it crosses Python as an answer, and goes on as it is behind it
            thrown_ = std::current_exception();
        }
        return false;
    }

    bool should_stop(const std::string& when) {
        const auto passed = std::chrono::steady_clock::now() - start_;
        if (*closing_)
            reason_ = "the pipeline was closed " + when;
        else if (options_.cancellation.requested())
            reason_ = "the host cancelled the run " + when;
        else if (options_.time_limit && passed >= *options_.time_limit)
            reason_ = "the time_limit of " + seconds() + " had passed " + when;
        else
            return false;
        return true;
    }

    std::string seconds() const {
        std::ostringstream out;
        out << options_.time_limit->count() << " s";
        return out.str();
    }

    const RunOptions options_;
    const std::shared_ptr<const std::atomic<bool>> closing_;
    const std::chrono::steady_clock::time_point start_;
    std::string reason_;
    std::exception_ptr thrown_;
};

}  // namespace telecine
