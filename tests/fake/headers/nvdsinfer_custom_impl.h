// What the parser uses of DeepStream's header, declared anew from NVIDIA's documentation of nvinfer: the real one comes
// with DeepStream, which needs a GPU machine.
#pragma once

#include <string>
#include <vector>

enum NvDsInferDataType { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3 };

struct NvDsInferDims {
    unsigned int numDims;
    unsigned int d[8];
    unsigned int numElements;
};

struct NvDsInferLayerInfo {
    NvDsInferDataType dataType;
    NvDsInferDims inferDims;
    int bindingIndex;
    const char* layerName;
    void* buffer;
    int isInput;
};

struct NvDsInferNetworkInfo {
    unsigned int width, height, channels;
};

struct NvDsInferParseDetectionParams {
    unsigned int numClassesConfigured;
    std::vector<float> perClassPreclusterThreshold;
    std::vector<float> perClassPostclusterThreshold;
};

struct NvDsInferObjectDetectionInfo {
    unsigned int classId;
    float left, top, width, height, detectionConfidence;
};

typedef bool (*NvDsInferParseCustomFunc)(
    std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&, NvDsInferParseDetectionParams const&,
    std::vector<NvDsInferObjectDetectionInfo>&);

#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(name) \
    static void check_##name(NvDsInferParseCustomFunc = name) {} \
    [[maybe_unused]] static void (*const checked_##name)(NvDsInferParseCustomFunc) = check_##name
