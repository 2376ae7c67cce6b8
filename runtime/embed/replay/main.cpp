// replay PLAN BUNDLE OUT.npy [NAME=FILE]...
//
// Runs a plan and writes its frames (or latents) as NumPy's .npy, and the sound of a plan that has some as
// OUT.audio.npy. NAME=FILE fills an array that the plan asks of its host with the file's bytes (little-endian,
// contiguous).
#include <algorithm>
#include <cstring>
#include <fstream>
#include <iostream>
#include <stdexcept>

#include "compute.hpp"
#include "networks.hpp"
#include "plan.hpp"

namespace fs = std::filesystem;
using namespace telecine;

static void fill_inputs(const Plan& plan, const std::vector<std::string>& given) {
    std::vector<std::string> missing = plan.inputs;
    for (const std::string& each : given) {
        const std::string name = each.substr(0, each.find('=')), path = each.substr(name.size() + 1);
        const auto asked = std::find(missing.begin(), missing.end(), name);
        if (asked == missing.end()) throw std::runtime_error("the plan does not ask for " + name);
        missing.erase(asked);
        const View& buffer = plan.buffers.at(name);
        const size_t bytes = buffer.size() * bytes_of(buffer.dtype);
        if (fs::file_size(path) != bytes)
            throw std::runtime_error(path + " is not " + std::to_string(bytes) + " bytes");
        std::ifstream(path, std::ios::binary)
            .read(reinterpret_cast<char*>(buffer.data), static_cast<std::streamsize>(bytes));
    }
    if (!missing.empty()) throw std::runtime_error("the plan asks for " + missing.front() + ": pass NAME=FILE");
}

// The part of an output that begins at `start` of its second axis, as the emitted value lies.
static View part_of(const View& output, const View& value, int64_t start) {
    View part = output;
    part.shape = value.shape;
    part.data += start * part.strides[1] * static_cast<int64_t>(bytes_of(part.dtype));
    return part;
}

static void run(const Plan& plan, Networks& networks) {
    for (const Step& step : plan.steps) {
        if (step.op == "run") {
            networks.run(step.network, step.inputs, step.outputs);
        } else if (step.op == "progress") {
            std::cerr << "step " << step.step + 1 << " of " << step.steps << ", from sigma " << step.sigma << "\n";
        } else if (step.op == "emit") {
            compute("copy", part_of(step.out, step.value, step.start), {{step.value}});
        } else {
            compute(step.op, step.out, step.operands);
        }
    }
}

static void write_npy(const fs::path& path, const View& array) {
    static const std::map<DType, std::string> codes = {{DType::float32, "<f4"}, {DType::uint8, "|u1"}};
    std::string header = "{'descr': '" + codes.at(array.dtype) + "', 'fortran_order': False, 'shape': (";
    for (const int64_t side : array.shape) header += std::to_string(side) + ", ";
    header += "), }";
    header += std::string(63 - (10 + header.size()) % 64, ' ') + "\n";
    const uint16_t length = static_cast<uint16_t>(header.size());
    std::ofstream file(path, std::ios::binary);
    file.exceptions(std::ios::failbit | std::ios::badbit);
    file.write("\x93NUMPY\x01\x00", 8).write(reinterpret_cast<const char*>(&length), 2) << header;
    file.write(reinterpret_cast<const char*>(array.data),
               static_cast<std::streamsize>(array.size() * bytes_of(array.dtype)));
}

int main(int argc, char** argv) {
    if (argc < 4) {
        std::cerr << "usage: replay PLAN BUNDLE OUT.npy [NAME=FILE]...\n";
        return 2;
    }
    try {
        const Plan plan = Plan::load(argv[1]);
        fill_inputs(plan, {argv + 4, argv + argc});
        Networks networks(plan, argv[2]);
        run(plan, networks);
        const fs::path out = argv[3];
        write_npy(out, plan.outputs.at("result"));
        const auto audio = plan.outputs.find("audio");
        if (audio != plan.outputs.end()) write_npy(fs::path(out).replace_extension(".audio.npy"), audio->second);
    } catch (const std::exception& error) {
        std::cerr << "replay: " << error.what() << "\n";
        return 1;
    }
}
