// A folder of `telecine plan`, read and laid out in memory: every view of its steps is a pointer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace telecine {

enum class DType { float32, float64, int32, int64, uint8 };

size_t bytes_of(DType dtype);

using Shape = std::vector<int64_t>;

// An array in memory: its first element, and elements from one to the next along each axis.
struct View {
    DType dtype;
    std::byte* data;
    Shape shape;
    std::vector<int64_t> strides;

    size_t size() const;
};

// What a step reads: a view, or a number.
struct Operand {
    std::optional<View> view;
    double number = 0;
};

using Bindings = std::vector<std::pair<std::string, View>>;

struct Step {
    std::string op;
    View out;                       // of an operation; of "emit": the whole output that `value` is a piece of
    std::vector<Operand> operands;  // of an operation
    std::string network;            // of "run": COMPONENT.ROLE
    Bindings inputs, outputs;       // of "run"
    View value;                     // of "emit" and "progress"
    int64_t start = 0;              // of "emit"
    int64_t step = 0, steps = 0;    // of "progress"
    double sigma = 0;               // of "progress"
};

// 64 bytes aligned, as vector units like it.
struct Free {
    void operator()(std::byte* data) const { ::operator delete(data, std::align_val_t{64}); }
};
using Memory = std::unique_ptr<std::byte[], Free>;
Memory allocate(size_t bytes);

struct Plan {
    std::map<std::string, std::filesystem::path> networks;  // COMPONENT.ROLE → graph, inside the bundle
    std::map<std::string, View> buffers;
    std::vector<std::string> inputs;  // buffers that the host fills before the first step
    std::vector<Step> steps;
    std::map<std::string, View> outputs;  // "result": frames or latents; "audio" beside, of a plan with sound

    // Throws std::runtime_error: a file is missing or damaged, or of a format that this reader does not know.
    static Plan load(const std::filesystem::path& folder);

 private:
    std::vector<Memory> memory_;  // what the buffers and outputs lie in
};

}  // namespace telecine
