// A bundle's graphs on ONNX Runtime's C API.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "plan.hpp"

namespace telecine {

class Networks {
 public:
    // Loads every network of the plan. Throws std::runtime_error with ONNX Runtime's own words.
    Networks(const Plan& plan, const std::filesystem::path& bundle);
    ~Networks();

    // Runs a network on contiguous arrays, in place.
    void run(const std::string& network, const Bindings& inputs, const Bindings& outputs);

 private:
    struct Runtime;
    std::unique_ptr<Runtime> runtime_;
};

}  // namespace telecine
