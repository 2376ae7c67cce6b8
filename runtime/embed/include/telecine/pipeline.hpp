// A bundle ready to make videos: requests in, frames out, steps watched and stopped.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "telecine/arrays.hpp"
#include "telecine/request.hpp"

namespace telecine {

// A step that is done, as the callback sees it: of a model that makes sound, the video's latents.
struct Progress {
    int step;  // from 0
    int steps;
    double sigma;                            // of this step
    float* latents;                          // (B, T, C) after it; what is written here the next step takes
    const std::vector<std::int64_t>& shape;  // of the latents
};

// Stops a run from any thread. Copies are the same one: keep one, give one to the run. Asked before the run begins, it
// begins no network; asked while it denoises, it ends after the step that is running. Once asked, it stays so.
class TELECINE_API Cancellation {
 public:
    void request() noexcept { *asked_ = true; }
    bool requested() const noexcept { return *asked_; }

 private:
    std::shared_ptr<std::atomic<bool>> asked_ = std::make_shared<std::atomic<bool>>(false);
};

// How a run is watched and stopped. A run that is stopped throws Cancelled, and the pipeline is free for the next one.
struct RunOptions {
    // Called after each step, by the thread that made the call, without Python's lock; false stops the run. What it
    // throws stops the run and comes out of the call. It may use other pipelines, but not close its own.
    std::function<bool(const Progress&)> on_step;
    Cancellation cancellation;
    // From the call on, looked at after each step: encoding the text and decoding are not cut short.
    std::optional<std::chrono::duration<double>> time_limit;
};

// What a run made.
struct Video {
    Array frames;   // (B, num_frames, height, width, 3): float32 in [0, 1], or uint8; none where latents were asked for
    Array latents;  // as the diffusers pipeline returns them, where they were asked for
    double frame_rate = 0;
    std::vector<std::int64_t> seeds;        // what to ask for to get the same video again
    std::map<std::string, double> timings;  // seconds by stage
    Array audio;                            // (B, channels, samples) float32 in [-1, 1], of models that make sound
    int sample_rate = 0;                    // samples a second of it
    Array audio_latents;                    // beside latents
};

class PipelineCore;
class StreamCore;

// Frames in pieces along time, each decoded when it is asked for. Its pipeline is busy until the last one is out, or
// the stream is gone. One thread at a time.
class TELECINE_API Stream {
 public:
    Stream(Stream&&) noexcept;
    Stream& operator=(Stream&&) noexcept;
    ~Stream();

    // The next (B, n, height, width, 3) frames; none after the last. Throws as `Pipeline::generate` does.
    Array next();

    const std::vector<std::int64_t>& shape() const;  // of all frames together
    double frame_rate() const;
    const std::vector<std::int64_t>& seeds() const;

 private:
    friend class Pipeline;
    explicit Stream(std::unique_ptr<StreamCore> core);
    std::unique_ptr<StreamCore> core_;
};

// A LoRA file, and how strongly it acts.
struct Lora {
    std::string file;
    double scale = 1.0;
};

// A bundle on a backend: made by `Runtime::load` and `clone`. One call at a time; a second one meanwhile is refused.
class TELECINE_API Pipeline {
 public:
    Pipeline(Pipeline&&) noexcept;
    Pipeline& operator=(Pipeline&&) noexcept;
    // Closes it; no other thread may be in a call.
    ~Pipeline();

    // A pipeline for another thread, over the same weights. Throws RequestError where this one is closed.
    Pipeline clone() const;

    // The video of a request.
    //
    // Throws RequestError: a parameter is wrong, or this pipeline is closed or busy; BundleError: the bundle lacks what
    // is asked for; BackendError: a network failed, or memory ran out; EngineError: no engine fits the size; Cancelled.
    Video generate(const Request& request, const RunOptions& options = {});

    // The same frames, bit for bit, in pieces; the denoising is done when this returns. The options' cancellation stops
    // `next`, too. Throws as `generate`, and RequestError for latents.
    Stream stream(const Request& request, const RunOptions& options = {});

    // Let LoRA files act, on all clones, in place of any that did; none: the bundle's own weights again.
    //
    // Throws SourceError: a file is refused, and nothing has changed; RequestError: this pipeline or a clone is in a
    // call; BackendError: the network could not be loaded with the new weights, and keeps what it had.
    void load_lora(const std::vector<Lora>& loras);

    // Stop what runs on it after its step, wait for that, and free the networks that no clone uses. May be called from
    // any thread, but by no callback of its own run (RequestError).
    void close();

 private:
    friend class Runtime;
    explicit Pipeline(std::shared_ptr<PipelineCore> core);
    std::shared_ptr<PipelineCore> core_;
};

}  // namespace telecine
