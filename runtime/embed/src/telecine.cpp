// The public classes. All of pybind11 is compiled here, once.
#include "telecine/telecine.hpp"

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "from_python.hpp"
#include "interpreter.hpp"
#include "pipeline_core.hpp"
#include "python.hpp"
#include "steps.hpp"
#include "to_python.hpp"

namespace telecine {
namespace {

// The process's Runtime, and the pipelines that it has to close. Never taken with Python's lock held.
struct Process {
    std::mutex mutex;
    bool running = false;
    std::vector<std::weak_ptr<PipelineCore>> pipelines;
};

Process& process() {
    static auto* the_process = new Process;  // kept: pipelines of static duration end after it would
    return *the_process;
}

// A pipeline that a shutdown closes. One that comes while it does is refused, and closed.
std::shared_ptr<PipelineCore> registered(py::object pipe) {
    auto core = std::make_shared<PipelineCore>(std::move(pipe));
    std::lock_guard lock(process().mutex);
    if (!process().running)
        throw RequestError("the Runtime is shut down", "one that runs", "Make another Runtime, and load again.");
    auto& all = process().pipelines;
    all.erase(std::remove_if(all.begin(), all.end(), [](const auto& one) { return one.expired(); }), all.end());
    all.push_back(core);
    return core;
}

template <class Core>
const Core& existing(const Core& core) {
    if (!core) throw RequestError("an object that was moved from", "the one that it was moved to", "Use that one.");
    return core;
}

// Call `method` of a pipeline with a request, and convert what it returns.
template <class Convert>
auto run(std::shared_ptr<PipelineCore> core, const char* method, const Request& request, const RunOptions& options,
         Convert convert) {
    const PipelineCore::Call call(*core);
    const auto steps = std::make_shared<Steps>(options, core->closing());
    steps->check_before();
    try {
        return in_python([&] {
            py::dict arguments = parameters(request);
            arguments["callback"] = py::cpp_function([steps](int step, int count, double sigma, py::object latents) {
                return (*steps)(step, count, sigma, std::move(latents));
            });
            return convert(core->pipe().attr(method)(**arguments));
        });
    } catch (const Cancelled&) {
        steps->throw_reason();
    }
}

}  // namespace

Runtime::Runtime(const RuntimeOptions& options) {
    std::lock_guard lock(process().mutex);
    if (process().running) throw BackendError("a second Runtime", "one a process", "Share it: all threads may use it.");
    start_interpreter(options.environment);
    in_python([&] {
        py::list path = py::module_::import("sys").attr("path");
        for (auto folder = options.python_path.rbegin(); folder != options.python_path.rend(); ++folder)
            if (const py::object name = path_in_python(*folder); !path.contains(name)) path.insert(0, name);
        try {
            py::module_::import("telecine.pipeline");
        } catch (const py::error_already_set& error) {
            throw BackendError(
                "telecine cannot be imported in " + options.environment + " (" + text(error.value()) + ")",
                "an environment that it is installed in", "Run: bin/python3 -m pip install \"telecine[onnxruntime]\"");
        }
        // Before there are threads: pybind11 before 2.12 finds NumPy in a static variable's initialiser, where one
        // thread that holds Python's lock and one that waits for it wait for each other.
        dtype_in_numpy(DType::float32);
    });
    process().running = true;
}

Runtime::~Runtime() {
    try {
        shutdown();
    } catch (const Error&) {  // what could not be closed ends with the process
    }
}

Pipeline Runtime::load(const std::string& bundle, const LoadOptions& options) {
    py::object pipe = in_python([&] {
        return py::object(py::module_::import("telecine").attr("load")(path_in_python(bundle), **parameters(options)));
    });
    return Pipeline(registered(std::move(pipe)));
}

void Runtime::shutdown() {
    std::vector<std::shared_ptr<PipelineCore>> open;
    {
        std::lock_guard lock(process().mutex);
        for (const auto& pipeline : process().pipelines)
            if (auto core = pipeline.lock()) open.push_back(std::move(core));
        for (const auto& core : open) core->check_outside();
        process().running = false;
        process().pipelines.clear();
    }
    for (const auto& core : open) core->stop();  // all at once, before the first is waited for
    for (const auto& core : open) core->close();
}

Pipeline::Pipeline(std::shared_ptr<PipelineCore> core) : core_(std::move(core)) {}
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;
Pipeline::~Pipeline() = default;

Pipeline Pipeline::clone() const {
    const auto core = existing(core_);
    const PipelineCore::Call call(*core);
    return Pipeline(registered(in_python([&] { return py::object(core->pipe().attr("clone")()); })));
}

Video Pipeline::generate(const Request& request, const RunOptions& options) {
    return run(existing(core_), "generate", request, options, [](const py::object& made) { return video_from(made); });
}

Stream Pipeline::stream(const Request& request, const RunOptions& options) {
    auto core = run(existing(core_), "stream", request, options, [&](py::object made) {
        auto stream = std::make_unique<StreamCore>(core_, made, options.cancellation);
        stream->shape = integers_from(made.attr("shape"));
        stream->seeds = integers_from(made.attr("seeds"));
        stream->frame_rate = made.attr("frame_rate").cast<double>();
        return stream;
    });
    return Stream(std::move(core));
}

void Pipeline::load_lora(const std::vector<Lora>& loras) {
    const auto core = existing(core_);
    const PipelineCore::Call call(*core);
    in_python([&] { core->pipe().attr("load_lora")(ToPython::of(loras)); });
}

void Pipeline::close() { existing(core_)->close(); }

Stream::Stream(std::unique_ptr<StreamCore> core) : core_(std::move(core)) {}
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;
Stream::~Stream() = default;

Array Stream::next() {
    StreamCore& core = *existing(core_);
    const PipelineCore::Call call(*core.pipeline);
    if (core.cancellation.requested()) {
        core.close();
        throw Cancelled("the host cancelled the run while it was decoded", "a run to its end",
                        "Ask again, with a new Cancellation.");
    }
    return in_python([&]() -> Array {
        const auto piece = py::reinterpret_steal<py::object>(PyIter_Next(core.stream.ptr()));
        if (!piece && PyErr_Occurred()) throw py::error_already_set();
        return piece ? array_from(piece) : Array();
    });
}

const std::vector<std::int64_t>& Stream::shape() const { return existing(core_)->shape; }
double Stream::frame_rate() const { return existing(core_)->frame_rate; }
const std::vector<std::int64_t>& Stream::seeds() const { return existing(core_)->seeds; }

}  // namespace telecine
