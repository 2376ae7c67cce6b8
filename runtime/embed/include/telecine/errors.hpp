// Every error that telecine throws: those of the Python package, by the same names.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

// Exceptions and classes are the same ones in a host and in a shared library of telecine.
#define TELECINE_API __attribute__((visibility("default")))

namespace telecine {

// A fault: what was got, what was expected, what to do next. `what()` is all of it as one text.
//
// An `Error` that is none of the kinds below is a Python exception that telecine did not mean: `got` is its type and
// text, `fix` its traceback.
class TELECINE_API Error : public std::runtime_error {
 public:
    Error(std::string got, std::string expected, std::string fix)
        : std::runtime_error(got + "; expected " + expected + ". " + fix),
          got_(std::move(got)),
          expected_(std::move(expected)),
          fix_(std::move(fix)) {}

    const std::string& got() const noexcept { return got_; }
    const std::string& expected() const noexcept { return expected_; }
    const std::string& fix() const noexcept { return fix_; }

 private:
    std::string got_, expected_, fix_;
};

// A LoRA file is missing, damaged, or not one that telecine takes.
class TELECINE_API SourceError : public Error {
    using Error::Error;
};

// The bundle is missing, damaged, edited, or of another format.
class TELECINE_API BundleError : public Error {
    using Error::Error;
};

// A parameter of a request is wrong, or a call comes at a time when it cannot be made.
class TELECINE_API RequestError : public Error {
    using Error::Error;
};

// The environment or a backend is missing, refuses a graph, or failed while running one; or memory ran out.
class TELECINE_API BackendError : public Error {
    using Error::Error;
};

// A TensorRT engine is missing, does not fit, or could not be loaded.
class TELECINE_API EngineError : public Error {
    using Error::Error;
};

// The host stopped the run, or its time was up.
class TELECINE_API Cancelled : public Error {
    using Error::Error;
};

}  // namespace telecine
