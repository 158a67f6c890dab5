from distillab.outside_code import names_code


def test_functions_of_packages_are_code_and_names_that_are_known_are_not():
    assert names_code("package.module:function")
    assert not any(names_code(spec) for spec in ("cnn8", "timm:resnet50", "torchvision:resnet18", "runs/a:b", "./x"))
