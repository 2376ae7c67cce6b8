// Arrays: the host's as views, telecine's as shared owners.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "telecine/errors.hpp"

namespace telecine {

enum class DType { uint8, int32, int64, float32, float64 };

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<std::uint8_t>() {
    return DType::uint8;
}
template <>
constexpr DType dtype_of<std::int32_t>() {
    return DType::int32;
}
template <>
constexpr DType dtype_of<std::int64_t>() {
    return DType::int64;
}
template <>
constexpr DType dtype_of<float>() {
    return DType::float32;
}
template <>
constexpr DType dtype_of<double>() {
    return DType::float64;
}

// An array of any shape in the host's memory. `strides` are bytes from one item to the next along each axis, for rows
// with padding and such; none means rows that follow each other (C order).
//
// A call reads it when it begins: the memory may change or go once the call has returned.
struct ArrayView {
    template <class T>
    ArrayView(const T* data, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides = {})
        : data(data), dtype(dtype_of<T>()), shape(std::move(shape)), strides(std::move(strides)) {}

    const void* data;
    DType dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> strides;
};

// An array that telecine made, in C order. Copies share the memory, which lives as long as one of them does.
class TELECINE_API Array {
 public:
    Array() = default;
    Array(std::shared_ptr<const void> memory, DType dtype, std::vector<std::int64_t> shape)
        : memory_(std::move(memory)), dtype_(dtype), shape_(std::move(shape)) {}

    // Whether there is one: a request for latents has no frames.
    explicit operator bool() const noexcept { return memory_ != nullptr; }

    DType dtype() const noexcept { return dtype_; }
    const std::vector<std::int64_t>& shape() const noexcept { return shape_; }

    // How many values it holds.
    std::size_t size() const noexcept {
        std::size_t count = memory_ ? 1 : 0;
        for (std::int64_t length : shape_) count *= static_cast<std::size_t>(length);
        return count;
    }

    // Its values. Throws RequestError where they are of another type, or there is no array.
    template <class T>
    const T* data() const {
        if (!memory_ || dtype_ != dtype_of<T>())
            throw RequestError(memory_ ? "an array of another type is read" : "an array that is not there is read",
                               "the type that dtype() says", "Set output_type to np, uint8 or latent in the request.");
        return static_cast<const T*>(memory_.get());
    }

 private:
    std::shared_ptr<const void> memory_;
    DType dtype_ = DType::float32;
    std::vector<std::int64_t> shape_;
};

}  // namespace telecine
