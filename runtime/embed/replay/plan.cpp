#include "plan.hpp"

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>

namespace telecine {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int kSilent = 1, kWithSound = 2;  // formats

size_t bytes_of(DType dtype) {
    switch (dtype) {
        case DType::float32:
        case DType::int32:
            return 4;
        case DType::float64:
        case DType::int64:
            return 8;
        case DType::uint8:
            return 1;
    }
    throw std::logic_error("a dtype that does not exist");
}

size_t View::size() const { return std::accumulate(shape.begin(), shape.end(), size_t{1}, std::multiplies<>()); }

Memory allocate(size_t bytes) { return Memory(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64}))); }

static DType dtype_named(const std::string& name) {
    static const std::map<std::string, DType> names = {{"float32", DType::float32},
                                                       {"float64", DType::float64},
                                                       {"int32", DType::int32},
                                                       {"int64", DType::int64},
                                                       {"uint8", DType::uint8}};
    const auto found = names.find(name);
    if (found == names.end())
        throw std::runtime_error("plan.json has the dtype " + name + ", which this reader does not");
    return found->second;
}

static std::ifstream opened(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path.string() + " cannot be read");
    file.exceptions(std::ios::failbit | std::ios::badbit | std::ios::eofbit);
    return file;
}

static View whole(DType dtype, std::byte* data, const Shape& shape) {
    std::vector<int64_t> strides(shape.size());
    int64_t step = 1;
    for (size_t axis = shape.size(); axis-- > 0; step *= shape[axis]) strides[axis] = shape[axis] > 1 ? step : 0;
    return {dtype, data, shape, strides};
}

// tensors.safetensors: eight bytes with the header's length, a JSON header, the tensors.
class Tensors {
 public:
    explicit Tensors(const fs::path& path) : file_(opened(path)) {
        uint64_t length = 0;
        file_.read(reinterpret_cast<char*>(&length), sizeof length);
        if (length > fs::file_size(path)) throw std::runtime_error(path.string() + " is damaged");
        std::string header(length, ' ');
        file_.read(header.data(), static_cast<std::streamsize>(length));
        header_ = Json::parse(header);
        start_ = sizeof length + length;
    }

    void read(const std::string& name, std::byte* into, size_t bytes) {
        const auto offsets = header_.at(name).at("data_offsets").get<std::pair<uint64_t, uint64_t>>();
        if (offsets.second - offsets.first != bytes) throw std::runtime_error("tensor " + name + " has another size");
        file_.seekg(static_cast<std::streamoff>(start_ + offsets.first));
        file_.read(reinterpret_cast<char*>(into), static_cast<std::streamsize>(bytes));
    }

 private:
    std::ifstream file_;
    Json header_;
    uint64_t start_ = 0;
};

// A buffer's name for all of it, or part of one.
static View view_in(const std::map<std::string, View>& buffers, const Json& view) {
    if (view.is_string()) return buffers.at(view.get<std::string>());
    const View& buffer = buffers.at(view.at("buffer").get<std::string>());
    View part{buffer.dtype, buffer.data, view.at("shape").get<Shape>(), view.at("strides").get<Shape>()};
    int64_t first = view.at("offset").get<int64_t>(), last = first;
    if (part.strides.size() != part.shape.size()) throw std::runtime_error("a view in plan.json is damaged");
    for (size_t axis = 0; axis < part.shape.size(); ++axis) last += (part.shape[axis] - 1) * part.strides[axis];
    if (first < 0 || last < first || static_cast<size_t>(last) >= buffer.size()) {
        throw std::runtime_error("a view in plan.json leaves its buffer");
    }
    part.data += first * static_cast<int64_t>(bytes_of(part.dtype));
    return part;
}

static Bindings bindings(const std::map<std::string, View>& buffers, const Json& views) {
    Bindings bound;
    for (const auto& [name, view] : views.items()) bound.emplace_back(name, view_in(buffers, view));
    return bound;
}

static Step parse_step(const Plan& plan, const Json& json) {
    const std::map<std::string, View>& buffers = plan.buffers;
    Step step;
    step.op = json.at("op").get<std::string>();
    if (step.op == "run") {
        step.network = json.at("component").get<std::string>() + "." + json.at("role").get<std::string>();
        step.inputs = bindings(buffers, json.at("inputs"));
        step.outputs = bindings(buffers, json.at("outputs"));
    } else if (step.op == "emit") {
        step.out = plan.outputs.at(json.value("output", "result"));
        step.value = view_in(buffers, json.at("value"));
        step.start = json.at("start").get<int64_t>();
    } else if (step.op == "progress") {
        step.value = view_in(buffers, json.at("latents"));
        json.at("step").get_to(step.step);
        json.at("steps").get_to(step.steps);
        json.at("sigma").get_to(step.sigma);
    } else {
        step.out = view_in(buffers, json.at("out"));
        for (const char* name : {"a", "b"}) {
            if (!json.contains(name)) continue;
            const Json& operand = json.at(name);
            if (operand.is_number()) {
                step.operands.push_back({std::nullopt, operand.get<double>()});
            } else {
                step.operands.push_back({view_in(buffers, operand)});
            }
        }
    }
    return step;
}

Plan Plan::load(const fs::path& folder) {
    std::ifstream file = opened(folder / "plan.json");
    file.exceptions(std::ios::badbit);  // the parser reads to the end
    const Json json = Json::parse(file);
    if (json.at("format") != kSilent && json.at("format") != kWithSound)
        throw std::runtime_error(folder.string() + " is a plan of another format");

    Plan plan;
    std::vector<std::byte*> blocks;
    const auto new_memory = [&plan](size_t bytes) {
        plan.memory_.push_back(allocate(bytes));
        return plan.memory_.back().get();
    };
    for (const Json& bytes : json.at("memory")) blocks.push_back(new_memory(bytes.get<size_t>()));
    Tensors tensors(folder / "tensors.safetensors");
    for (const auto& [name, entry] : json.at("buffers").items()) {
        const size_t bytes = entry.at("bytes").get<size_t>();
        const bool shared = entry.contains("memory");
        View buffer = whole(dtype_named(entry.at("dtype")), nullptr, entry.at("shape").get<Shape>());
        if (buffer.size() * bytes_of(buffer.dtype) != bytes) throw std::runtime_error("buffer " + name + " is damaged");
        buffer.data = shared ? blocks.at(entry.at("memory").get<size_t>()) : new_memory(bytes);
        if (entry.contains("tensor")) tensors.read(name, buffer.data, bytes);
        plan.buffers.emplace(name, std::move(buffer));
    }
    json.at("inputs").get_to(plan.inputs);
    for (const auto& [component, roles] : json.at("components").items()) {
        for (const auto& [role, files] : roles.items()) {
            // ONNX Runtime's CPU provider may have a graph of its own, over the same weights.
            const char* graph = files.contains("onnxruntime_cpu") ? "onnxruntime_cpu" : "graph";
            plan.networks[component + "." + role] = files.at(graph).get<std::string>();
        }
    }
    const auto add_output = [&](const std::string& name, const Json& entry) {
        View output = whole(dtype_named(entry.at("dtype")), nullptr, entry.at("shape").get<Shape>());
        output.data = new_memory(output.size() * bytes_of(output.dtype));
        plan.outputs.emplace(name, std::move(output));
    };
    const Json& made = json.at("output");
    add_output("result", made);
    if (made.contains("audio")) add_output("audio", made.at("audio"));
    for (const Json& step : json.at("steps")) plan.steps.push_back(parse_step(plan, step));
    return plan;
}

}  // namespace telecine
