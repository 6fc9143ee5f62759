// A TensorRT engine, of 8.6 and later, with Ultralytics' header in front of it or without.
#pragma once

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct Output {
    int first, second;
    std::vector<float> values;
};

inline void check(cudaError_t code) {
    if (code != cudaSuccess) throw std::runtime_error(cudaGetErrorString(code));
}

// The header is the length of a JSON text (4 bytes, little endian) and the text; an engine itself begins otherwise.
inline size_t header_size(const std::vector<char>& content) {
    if (content.size() < 5 || content[4] != '{') return 0;
    uint32_t length = 0;
    for (int byte = 3; byte >= 0; --byte) length = length << 8 | static_cast<uint8_t>(content[byte]);
    return content.size() > length + 4ull ? length + 4ull : 0;
}

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
    }
};

class Model {
public:
    explicit Model(const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        const std::vector<char> content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        if (content.empty()) throw std::runtime_error(path + " cannot be read.");
        const size_t skip = header_size(content);
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        engine_.reset(runtime_->deserializeCudaEngine(content.data() + skip, content.size() - skip));
        if (!engine_) throw std::runtime_error(path + " was built by another TensorRT, or for another GPU.");
        context_.reset(engine_->createExecutionContext());
        check(cudaStreamCreate(&stream_));
        for (int index = 0; index < engine_->getNbIOTensors(); ++index) {
            const char* name = engine_->getIOTensorName(index);
            const nvinfer1::Dims shape = engine_->getTensorShape(name);
            if (engine_->getTensorDataType(name) != nvinfer1::DataType::kFLOAT) throw std::runtime_error("Inputs and outputs must be float32.");
            size_t size = 1;
            for (int axis = 0; axis < shape.nbDims; ++axis) size *= static_cast<size_t>(shape.d[axis]);
            const bool takes = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
            void*& buffer = takes ? input_ : output_;
            check(cudaMalloc(&buffer, size * sizeof(float)));
            context_->setTensorAddress(name, buffer);
            if (!takes) {
                result_.first = static_cast<int>(shape.d[1]), result_.second = static_cast<int>(shape.d[2]);
                result_.values.resize(size);
            }
        }
    }

    ~Model() {
        cudaFree(input_);
        cudaFree(output_);
        cudaStreamDestroy(stream_);
    }

    const Output& infer(const std::vector<float>& input) {
        check(cudaMemcpyAsync(input_, input.data(), input.size() * sizeof(float), cudaMemcpyHostToDevice, stream_));
        if (!context_->enqueueV3(stream_)) throw std::runtime_error("The engine failed.");
        check(cudaMemcpyAsync(result_.values.data(), output_, result_.values.size() * sizeof(float), cudaMemcpyDeviceToHost, stream_));
        check(cudaStreamSynchronize(stream_));
        return result_;
    }

private:
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cudaStream_t stream_ = nullptr;
    void *input_ = nullptr, *output_ = nullptr;
    Output result_{};
};
