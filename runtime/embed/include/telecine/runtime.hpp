// The interpreter that runs telecine, started from an environment's path.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "telecine/pipeline.hpp"

namespace telecine {

struct RuntimeOptions {
    // A virtual environment, or any Python prefix (with bin/ and lib/pythonX.Y/), that telecine is installed in, of the
    // Python version that this library was built for.
    std::string environment;
    // Folders to import from before the environment's own: a checkout's runtime/, say.
    std::vector<std::string> python_path = {};
};

// Settings of ONNX Runtime sessions; what is not set has telecine's default.
struct OnnxRuntimeOptions {
    std::optional<std::vector<std::string>> providers;
    std::optional<int> threads;  // of one operator
    std::optional<bool> memory_arena;
    std::optional<bool> memory_pattern;
    // Of its CUDA provider.
    std::optional<std::int64_t> gpu_mem_limit;  // bytes of each network's arena
    std::optional<std::string> cudnn_conv_algo_search;
    std::optional<bool> use_tf32;
    std::optional<std::map<std::string, std::map<std::string, std::string>>> provider_options;  // by provider and name
};

// The parameters of `telecine.load`, by their names.
struct LoadOptions {
    std::optional<std::string> backend;  // "auto", "onnxruntime", "tensorrt"
    std::optional<std::string> device;   // "auto", "cpu", "cuda", "cuda:N"
    std::optional<std::string> engines;  // the folder of engines, where it is not the bundle's own
    std::optional<OnnxRuntimeOptions> options;
    // A CUDA stream of the host (`cudaStream_t`), which all work on the GPU goes to; it must outlive the pipelines.
    std::optional<void*> stream;
    std::optional<bool> cuda_graphs;          // none: where they pay
    std::optional<MemoryLimit> prompt_cache;  // for embeddings of the latest prompts; 0: none
};

// telecine's Python, one a process at a time. May be used by all threads.
//
// NumPy cannot be loaded a second time in a process ("cannot load module more than once per process"), so the
// interpreter, once started, stays until the process ends. Shutting down closes all pipelines and frees their networks;
// another Runtime may be made after that, over the same environment. Python handles no signals, leaves the locale as it
// is, and reads no environment variables of its own (PYTHONPATH, ...).
class TELECINE_API Runtime {
 public:
    // Throws BackendError: another Runtime lives, the process has a Python of its own or one of another environment,
    // or the environment is missing, of another Python version, or without telecine.
    explicit Runtime(const RuntimeOptions& options);
    Runtime(const Runtime&) = delete;
    Runtime& operator=(const Runtime&) = delete;
    ~Runtime();

    // Open a bundle. Networks load when a request first needs them.
    //
    // Throws BundleError: it is missing, damaged or edited; BackendError: the options contradict each other, or there
    // is no such device; EngineError: the folder of engines is missing; RequestError: this Runtime is shut down.
    Pipeline load(const std::string& bundle, const LoadOptions& options = {});

    // Stop what runs after its step, wait for that, and close every pipeline. Again: nothing. Throws RequestError where
    // a callback of a run calls it.
    void shutdown();
};

}  // namespace telecine
