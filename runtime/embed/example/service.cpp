// A service that makes videos: a queue of requests, and worker threads with a pipeline each.
//
// Nothing here knows of Python. Each request of the queue has its own seed; its frames are written as
// OUT/REQUEST/FRAME.ppm, which image viewers open and `ffmpeg -i OUT/0/%05d.ppm` reads. Ctrl-C stops what runs at its
// next step.
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <queue>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "options.hpp"
#include "telecine/telecine.hpp"

namespace {

telecine::Cancellation interrupted;

// What all workers share.
class Queue {
 public:
    explicit Queue(int seeds, int first) {
        for (int i = 0; i < seeds; ++i) waiting_.push(first + i);
    }

    // The next seed; false where none is left, or the service was interrupted.
    bool next(int& seed) {
        std::lock_guard lock(mutex_);
        if (waiting_.empty() || interrupted.requested()) return false;
        seed = waiting_.front();
        waiting_.pop();
        return true;
    }

    void report(std::FILE* to, const std::string& line) {
        std::lock_guard lock(mutex_);
        std::fprintf(to, "%s\n", line.c_str());
        std::fflush(to);
        failed_ |= to == stderr;
    }

    bool failed() const { return failed_; }

 private:
    std::mutex mutex_;
    std::queue<int> waiting_;
    bool failed_ = false;
};

void write(const telecine::Array& frames, const std::filesystem::path& folder) {
    std::filesystem::create_directories(folder);
    const std::int64_t count = frames.shape()[1], height = frames.shape()[2], width = frames.shape()[3];
    const char* pixels = reinterpret_cast<const char*>(frames.data<std::uint8_t>());
    for (std::int64_t i = 0; i < count; ++i) {
        char name[16];
        std::snprintf(name, sizeof name, "%05d.ppm", static_cast<int>(i));
        std::ofstream file(folder / name, std::ios::binary);
        file << "P6\n" << width << " " << height << "\n255\n";
        file.write(pixels + i * height * width * 3, height * width * 3);
        if (!file.flush()) throw std::runtime_error("cannot write " + (folder / name).string());
    }
}

void work(telecine::Pipeline pipe, const Options& options, Queue& queue) {
    telecine::Request request;
    request.prompt = options.prompt;
    request.preset = options.preset;
    request.width = options.width;
    request.height = options.height;
    request.num_frames = options.frames;
    request.num_inference_steps = options.steps;
    request.output_type = "uint8";
    telecine::RunOptions run;
    run.cancellation = interrupted;
    if (options.time_limit) run.time_limit = std::chrono::duration<double>(*options.time_limit);
    for (int seed = 0; queue.next(seed);) {
        const std::string name = std::to_string(seed - options.seed);
        try {
            request.seed = seed;
            const telecine::Video video = pipe.generate(request, run);
            write(video.frames, std::filesystem::path(options.out) / name);
            queue.report(stdout, "request " + name + ": " + std::to_string(video.frames.shape()[1]) + " frames in " +
                                     std::to_string(video.timings.at("total")) + " s");
        } catch (const std::exception& error) {  // the next request may do better
            queue.report(stderr, "request " + name + ": " + error.what());
        }
    }
}

int serve(const Options& options) {
    telecine::RuntimeOptions where{options.environment};
    if (options.python_path) where.python_path = {*options.python_path};
    telecine::Runtime runtime(where);
    telecine::LoadOptions load;
    if (options.operator_threads) load.options.emplace().threads = options.operator_threads;
    const telecine::Pipeline pipe = runtime.load(options.bundle, load);
    Queue queue(options.requests, options.seed);
    std::vector<std::thread> workers;
    for (int i = 0; i < options.threads; ++i)
        workers.emplace_back(work, pipe.clone(), std::cref(options), std::ref(queue));
    for (std::thread& worker : workers) worker.join();
    return queue.failed() ? 1 : 0;
}

}  // namespace

int main(int count, char** arguments) {
    std::signal(SIGINT, [](int) { interrupted.request(); });
    try {
        return serve(parse(count, arguments));
    } catch (const telecine::Error& error) {
        std::fprintf(stderr, "telecine_service: %s\n", error.what());
        return 1;
    } catch (const std::invalid_argument& error) {
        std::fprintf(stderr, "telecine_service: %s\n\n%s", error.what(), kUsage);
        return 2;
    }
}
