// A picture in memory: height x width x 3, RGB, 8 bits.
#pragma once

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef WITH_OPENCV
#include <opencv2/imgcodecs.hpp>
#endif

struct Picture {
    int height, width;
    std::vector<uint8_t> pixels;
};

inline Picture read_picture(const std::string& path) {
#ifdef WITH_OPENCV
    const cv::Mat image = cv::imread(path, cv::IMREAD_COLOR);
    if (image.empty()) throw std::runtime_error(path + " cannot be read as a picture.");
    Picture picture{image.rows, image.cols, std::vector<uint8_t>(image.total() * 3)};
    for (int row = 0; row < image.rows; ++row) {
        for (int column = 0; column < image.cols; ++column) {
            const auto& pixel = image.at<cv::Vec3b>(row, column);
            uint8_t* target = &picture.pixels[(row * image.cols + column) * 3];
            target[0] = pixel[2], target[1] = pixel[1], target[2] = pixel[0];
        }
    }
    return picture;
#else
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    int width = 0, height = 0, largest = 0;
    file >> kind >> width >> height >> largest;
    file.get();
    if (!file || kind != "P6" || largest != 255) {
        throw std::runtime_error(path + " is no binary PPM picture, which is all that can be read without OpenCV.");
    }
    Picture picture{height, width, std::vector<uint8_t>(static_cast<size_t>(height) * width * 3)};
    file.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
    if (!file) throw std::runtime_error(path + " is cut off.");
    return picture;
#endif
}
