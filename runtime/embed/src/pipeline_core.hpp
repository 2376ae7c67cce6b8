// A Python pipeline or stream, and who is in a call of it.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "python.hpp"
#include "telecine/pipeline.hpp"

namespace telecine {

class PipelineCore {
 public:
    // While a thread is in a call, in which the pipeline is not closed.
    class Call {
     public:
        explicit Call(PipelineCore& core) : core_(core) {
            std::lock_guard lock(core.mutex_);
            if (*core.closing_) throw RequestError("this pipeline is closed", "an open one", "Load the bundle again.");
            core.callers_.push_back(std::this_thread::get_id());
        }
        ~Call() {
            std::lock_guard lock(core_.mutex_);
            core_.callers_.erase(std::find(core_.callers_.begin(), core_.callers_.end(), std::this_thread::get_id()));
            core_.left_.notify_all();
        }
        Call(const Call&) = delete;
        Call& operator=(const Call&) = delete;

     private:
        PipelineCore& core_;
    };

    explicit PipelineCore(py::object pipe) : pipe_(std::move(pipe)) {}

    ~PipelineCore() {
        try {
            close();
        } catch (const Error&) {  // it is let go of all the same
        }
        drop(pipe_);
    }

    const py::object& pipe() const { return pipe_; }
    std::shared_ptr<const std::atomic<bool>> closing() const { return closing_; }

    // Throws RequestError: this thread is in a call, which it would wait for.
    void check_outside() {
        std::lock_guard lock(mutex_);
        if (std::find(callers_.begin(), callers_.end(), std::this_thread::get_id()) != callers_.end())
            throw RequestError("a callback closes the pipeline that called it", "a close from outside",
                               "Return false from on_step, and close when the call has returned.");
    }

    // Let running calls stop at their next step.
    void stop() noexcept { *closing_ = true; }

    void close() {
        check_outside();
        {
            std::unique_lock lock(mutex_);
            *closing_ = true;
            left_.wait(lock, [this] { return callers_.empty(); });
        }
        in_python([this] { pipe_.attr("close")(); });
    }

 private:
    py::object pipe_;
    std::shared_ptr<std::atomic<bool>> closing_ = std::make_shared<std::atomic<bool>>(false);
    std::mutex mutex_;
    std::condition_variable left_;
    std::vector<std::thread::id> callers_;
};

// A `telecine.FrameStream`.
class StreamCore {
 public:
    StreamCore(std::shared_ptr<PipelineCore> pipeline, py::object stream, Cancellation cancellation)
        : pipeline(std::move(pipeline)), stream(std::move(stream)), cancellation(std::move(cancellation)) {}

    ~StreamCore() {
        try {
            close();
        } catch (const Error&) {  // it is let go of all the same
        }
        drop(stream);
    }

    // Decode no further, and let the pipeline's next request in.
    void close() {
        in_python([this] { stream.attr("close")(); });
    }

    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> seeds;
    double frame_rate = 0;
    std::shared_ptr<PipelineCore> pipeline;
    py::object stream;
    Cancellation cancellation;
};

}  // namespace telecine
