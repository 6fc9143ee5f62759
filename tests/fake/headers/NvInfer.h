// What the C++ loader uses of TensorRT, declared anew from its documentation. The "engine" is a text: PLAN, rows, columns,
// and the values that the output has whatever comes in.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace nvinfer1 {

enum class DataType { kFLOAT = 0, kHALF = 1 };
enum class TensorIOMode { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

class ILogger {
public:
    enum class Severity { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, const char* message) noexcept = 0;
    virtual ~ILogger() = default;
};

class IExecutionContext {
public:
    explicit IExecutionContext(std::vector<float> values) : values_(std::move(values)) {}
    bool setTensorAddress(const char* name, void* place) { return places_[name] = place, true; }
    template <typename Stream>
    bool enqueueV3(Stream) {
        return std::memcpy(places_["output0"], values_.data(), values_.size() * sizeof(float)), true;
    }

private:
    std::vector<float> values_;
    std::map<std::string, void*> places_;
};

class ICudaEngine {
public:
    ICudaEngine(int rows, int columns, std::vector<float> values) : rows_(rows), columns_(columns), values_(std::move(values)) {}
    IExecutionContext* createExecutionContext() { return new IExecutionContext(values_); }
    int32_t getNbIOTensors() const { return 2; }
    const char* getIOTensorName(int32_t index) const { return index ? "output0" : "images"; }
    DataType getTensorDataType(const char*) const { return DataType::kFLOAT; }
    TensorIOMode getTensorIOMode(const char* name) const {
        return std::string(name) == "images" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    Dims getTensorShape(const char* name) const {
        return std::string(name) == "images" ? Dims{4, {1, 3, 160, 160}} : Dims{3, {1, rows_, columns_}};
    }

private:
    int rows_, columns_;
    std::vector<float> values_;
};

class IRuntime {
public:
    ICudaEngine* deserializeCudaEngine(const void* content, size_t size) {
        std::istringstream text(std::string(static_cast<const char*>(content), size));
        std::string word;
        int rows = 0, columns = 0;
        text >> word >> rows >> columns;
        if (word != "PLAN") return nullptr;
        std::vector<float> values(static_cast<size_t>(rows) * columns);
        for (float& value : values) text >> value;
        return new ICudaEngine(rows, columns, values);
    }
};

inline IRuntime* createInferRuntime(ILogger&) { return new IRuntime; }

}  // namespace nvinfer1
