// How long things live: runtimes, pipelines, streams, frames, memory.
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "checks.hpp"

using namespace telecine;

namespace {

std::ptrdiff_t threads() {
    const std::filesystem::directory_iterator all("/proc/self/task");
    return std::distance(begin(all), end(all));
}

long resident_pages() {
    std::ifstream file("/proc/self/statm");
    long total = 0, resident = 0;
    file >> total >> resident;
    return resident;
}

// Where threads wait until all are there, again and again.
class Meeting {
 public:
    explicit Meeting(int threads) : threads_(threads) {}

    void wait() {
        std::unique_lock lock(mutex_);
        const int round = round_;
        if (++there_ == threads_) {
            there_ = 0;
            ++round_;
            all_.notify_all();
        }
        all_.wait(lock, [&] { return round_ != round; });
    }

 private:
    std::mutex mutex_;
    std::condition_variable all_;
    const int threads_;
    int there_ = 0, round_ = 0;
};

}  // namespace

void check_restart(const Given& given) {
    LoadOptions options = one_thread();
    options.options->threads = 3;  // two more for each network
    std::optional<Runtime> runtime(std::in_place, given.environment);
    std::optional<Pipeline> old(runtime->load(given.bundle, options));
    const Video video = old->generate(small());
    const std::ptrdiff_t loaded = threads();
    Stream left = old->clone().stream(small());  // whose pipeline lives as long as it does
    runtime->shutdown();
    const std::ptrdiff_t freed = threads();  // of the tokenizer's pool, which stays
    expect(freed <= loaded - 6, "the threads of three networks are gone, and so are they");
    runtime->shutdown();
    expect_error<RequestError>("this pipeline is closed", [&] { old->generate(small()); });
    expect_error<RequestError>("this pipeline is closed", [&] { left.next(); });
    expect_error<RequestError>("the Runtime is shut down", [&] { runtime->load(given.bundle); });
    runtime.reset();

    for (int again = 0; again < 3; ++again) {
        Runtime next(given.environment);
        Pipeline pipe = next.load(given.bundle, options);
        expect(bytes(pipe.generate(small()).frames) == bytes(video.frames), "the same frames after a restart");
    }
    static Video kept;  // until the process ends
    kept = video;
    expect(threads() == freed, "a Runtime that ends closes its pipelines");
    old.reset();
    expect(video.frames.shape() == std::vector<std::int64_t>{1, 9, 64, 64, 3}, "frames outlive what made them");
}

void check_shutdown(const Given& given) {
    Runtime runtime(given.environment);
    Pipeline pipe = runtime.load(given.bundle, one_thread());
    Pipeline other = pipe.clone();
    Request request = small();
    request.num_inference_steps = 1000;
    std::promise<void> begun;
    RunOptions options;
    options.on_step = [&](const Progress& progress) {
        if (progress.step) return true;
        expect_error<RequestError>("a callback closes the pipeline", [&] { pipe.close(); });
        expect_error<RequestError>("a callback closes the pipeline", [&] { runtime.shutdown(); });
        expect_error<RequestError>("one request at a time", [&] { pipe.generate(small()); });
        // Python's lock is free in a callback, or this would wait forever.
        std::async(std::launch::async, [&] { other.generate(small()); }).get();
        expect(bool(other.generate(small()).frames), "another pipeline works inside a callback");
        begun.set_value();
        return true;
    };
    auto run = std::async(std::launch::async, [&] {
        expect_error<Cancelled>("the pipeline was closed", [&] { pipe.generate(request, options); });
    });
    begun.get_future().wait();
    runtime.shutdown();
    run.get();
    expect_error<RequestError>("this pipeline is closed", [&] { other.generate(small()); });
}

void check_streams(const Given& given) {
    Runtime runtime(given.environment);
    Pipeline pipe = runtime.load(given.bundle, one_thread());
    Request request = small(5);
    request.num_frames = 33;
    const std::string whole = bytes(pipe.generate(request).frames);
    request.tiling = "seamless";
    request.tile_frames = 16;  // two pieces or more
    request.tile_frame_stride = 8;
    const Video tiled = pipe.generate(request);
    {
        Stream stream = pipe.stream(request);
        expect(stream.shape() == tiled.frames.shape(), "a stream says the shape of all frames");
        expect(stream.seeds() == tiled.seeds && stream.frame_rate() == tiled.frame_rate, "and the rest");
        expect_error<RequestError>("one request at a time", [&] { pipe.generate(request); });
        std::string joined;
        int pieces = 0;
        for (Array piece = stream.next(); piece; piece = stream.next(), ++pieces) joined += bytes(piece);
        expect(pieces > 1, "there are several pieces");
        expect(joined == bytes(tiled.frames), "pieces are the whole video, bit for bit");
        expect(!stream.next(), "nothing comes after the last one");
    }
    {
        Stream left = pipe.stream(request);
        left.next();
    }
    RunOptions options;
    Stream cancelled = pipe.stream(request, options);  // the one that was left early has freed the pipeline
    cancelled.next();
    options.cancellation.request();
    expect_error<Cancelled>("while it was decoded", [&] { cancelled.next(); });
    request.tiling.reset();
    request.tile_frames.reset();
    request.tile_frame_stride.reset();
    expect(bytes(pipe.generate(request).frames) == whole, "and so has the one that was cancelled");
}

// GENERATIONS THREADS: prints the resident pages after the first 20, and after all of them.
//
// ONNX Runtime keeps the memory of as many runs as ever overlapped: in the first 20 the threads wait for each other
// before every network, so that all of them do.
void check_soak(const Given& given) {
    const int generations = std::stoi(given.more.at(0)), count = std::stoi(given.more.at(1));
    constexpr int kFirst = 20;
    Runtime runtime(given.environment);
    const Pipeline pipe = runtime.load(given.bundle, one_thread());
    std::vector<Pipeline> pipes;
    for (int i = 0; i < count; ++i) pipes.push_back(pipe.clone());
    const std::string expected[] = {bytes(pipes[0].generate(small(0)).frames),
                                    bytes(pipes[0].generate(small(1)).frames)};
    const auto make = [&](Pipeline& mine, int i, const RunOptions& options) {
        const std::string frames = bytes(mine.generate(small(i % 2), options).frames);
        expect(frames == expected[i % 2], "each thread has its own request's frames");
    };
    const auto in_threads = [&](auto work) {
        std::vector<std::future<void>> workers;
        for (Pipeline& each : pipes) workers.push_back(std::async(std::launch::async, work, std::ref(each)));
        for (auto& worker : workers) worker.get();
        std::printf("%ld\n", resident_pages());
    };

    Meeting meeting(count);
    in_threads([&](Pipeline& mine) {
        RunOptions together;
        together.on_step = [&](const Progress&) { return meeting.wait(), true; };
        for (int i = 0; i < kFirst / count; ++i) {
            meeting.wait();
            make(mine, i, together);
        }
    });
    std::atomic<int> begun{kFirst};
    in_threads([&](Pipeline& mine) {
        for (int i = begun++; i < generations; i = begun++) make(mine, i, {});
    });
}
