// An ONNX model on OpenVINO.
#pragma once

#include <openvino/openvino.hpp>
#include <string>
#include <vector>

struct Output {
    int first, second;
    std::vector<float> values;
};

class Model {
public:
    explicit Model(const std::string& path) {
        ov::Core core;
        compiled_ = core.compile_model(core.read_model(path), "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
        request_ = compiled_.create_infer_request();
    }

    Output infer(std::vector<float>& input) {
        request_.set_input_tensor(ov::Tensor(ov::element::f32, compiled_.input().get_shape(), input.data()));
        request_.infer();
        const ov::Tensor found = request_.get_output_tensor(0);
        const ov::Shape shape = found.get_shape();
        const float* values = found.data<float>();
        return {static_cast<int>(shape.at(1)), static_cast<int>(shape.at(2)), {values, values + found.get_size()}};
    }

private:
    ov::CompiledModel compiled_;
    ov::InferRequest request_;
};
