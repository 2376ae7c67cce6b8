#include "networks.hpp"

#include <functional>
#include <stdexcept>
#include <vector>

#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#else
#include "onnxruntime_abi.h"
#endif

namespace telecine {
namespace {

const OrtApi& api() {
    static const OrtApi* const found = OrtGetApiBase()->GetApi(1);  // all that is used has been there since version 1
    if (found == nullptr) throw std::runtime_error("this ONNX Runtime has no version 1 of its C API");
    return *found;
}

void check(OrtStatus* status) {
    if (status == nullptr) return;
    const std::string message = api().GetErrorMessage(status);
    api().ReleaseStatus(status);
    throw std::runtime_error("ONNX Runtime: " + message);
}

template <class T>
using Owned = std::unique_ptr<T, std::function<void(T*)>>;

template <class T, class Create, class Release>
Owned<T> make(Release release, Create create) {
    T* made = nullptr;
    check(create(&made));
    return Owned<T>(made, release);
}

ONNXTensorElementDataType element_type(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        case DType::float64:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
        case DType::int32:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        case DType::int64:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        case DType::uint8:
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    }
    throw std::logic_error("a dtype that does not exist");
}

// OrtValues over arrays, and their names as the C API takes them.
struct Values {
    std::vector<const char*> names;
    std::vector<OrtValue*> raw;
    std::vector<Owned<OrtValue>> owned;

    Values(const OrtMemoryInfo* memory, const Bindings& bindings) {
        for (const auto& [name, view] : bindings) {
            const View& array = view;
            owned.push_back(make<OrtValue>(api().ReleaseValue, [&](OrtValue** out) {
                return api().CreateTensorWithDataAsOrtValue(memory, array.data, array.size() * bytes_of(array.dtype),
                                                            array.shape.data(), array.shape.size(),
                                                            element_type(array.dtype), out);
            }));
            names.push_back(name.c_str());
            raw.push_back(owned.back().get());
        }
    }
};

}  // namespace

struct Networks::Runtime {
    Owned<OrtEnv> env = make<OrtEnv>(
        api().ReleaseEnv, [](OrtEnv** out) { return api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "telecine", out); });
    Owned<OrtMemoryInfo> memory = make<OrtMemoryInfo>(api().ReleaseMemoryInfo, [](OrtMemoryInfo** out) {
        return api().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, out);
    });
    std::map<std::string, Owned<OrtSession>> sessions;
};

Networks::Networks(const Plan& plan, const std::filesystem::path& bundle) : runtime_(std::make_unique<Runtime>()) {
    const auto options = make<OrtSessionOptions>(
        api().ReleaseSessionOptions, [](OrtSessionOptions** out) { return api().CreateSessionOptions(out); });
    for (const auto& [name, graph] : plan.networks) {
        const std::string path = (bundle / graph).string();
        runtime_->sessions.emplace(name, make<OrtSession>(api().ReleaseSession, [&](OrtSession** out) {
                                       return api().CreateSession(runtime_->env.get(), path.c_str(), options.get(),
                                                                  out);
                                   }));
    }
}

Networks::~Networks() = default;

void Networks::run(const std::string& network, const Bindings& inputs, const Bindings& outputs) {
    const Values in(runtime_->memory.get(), inputs);
    Values out(runtime_->memory.get(), outputs);
    check(api().Run(runtime_->sessions.at(network).get(), nullptr, in.names.data(), in.raw.data(), in.raw.size(),
                    out.names.data(), out.raw.size(), out.raw.data()));
}

}  // namespace telecine
