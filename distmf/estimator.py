"""What scikit-learn expects of an estimator, without a need of it."""

import copy
import inspect
from typing import Any, Self

from distmf.arguments import did_you_mean
from distmf.errors import ParameterError


class Estimator:
    """The manners of a regressor whose constructor keeps what it is given under the same names."""

    @classmethod
    def parameter_names(cls) -> tuple[str, ...]:
        """Return the names of what the constructor takes."""
        return tuple(inspect.signature(cls).parameters)

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters
        default = {name: repr(parameter.default) for name, parameter in parameters.items()}
        given = {name: value for name, value in self.get_params().items() if repr(value) != default[name]}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return what the constructor was given, by name, as estimators of scikit-learn do.

        Parameters
        ----------
        deep : bool
            Without effect: no parameter is an estimator.
        """
        return {name: getattr(self, name) for name in self.parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the constructor by name, and return the estimator itself.

        Raises
        ------
        ParameterError
            If there is no parameter of a name.
        """
        names = self.parameter_names()
        for name, value in params.items():
            if name not in names:
                hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
                raise ParameterError(f"there is no parameter {name!r}{hint}")
            setattr(self, name, value)
        return self

    def get_metadata_routing(self) -> Any:
        """Say to scikit-learn whether `fit` and `score` are to be given weights; only scikit-learn asks."""
        from sklearn.utils.metadata_routing import MetadataRequest  # noqa: PLC0415 (not a dependency)

        if hasattr(self, "_metadata_request"):
            return copy.deepcopy(self._metadata_request)
        found = MetadataRequest(owner=type(self).__name__)
        for method in (found.fit, found.score):
            method.add_request(param="sample_weight", alias=None)
        return found

    def set_fit_request(self, *, sample_weight: bool | str | None = None) -> Self:
        """Say whether scikit-learn is to pass weights to `fit`, where its metadata routing is on; return itself."""
        return self._requested("fit", sample_weight)

    def set_score_request(self, *, sample_weight: bool | str | None = None) -> Self:
        """Say whether scikit-learn is to pass weights to `score`, where its metadata routing is on; return itself."""
        return self._requested("score", sample_weight)

    def _requested(self, method: str, sample_weight: bool | str | None) -> Self:
        requests = self.get_metadata_routing()
        getattr(requests, method).add_request(param="sample_weight", alias=sample_weight)
        self._metadata_request = requests  # which clone copies, where there are any
        return self

    def __sklearn_tags__(self) -> Any:
        """Say to scikit-learn what this is; only scikit-learn asks."""
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags  # noqa: PLC0415 (not a dependency)

        inputs = InputTags(string=True)
        return Tags("regressor", TargetTags(required=True), None, None, RegressorTags(), input_tags=inputs)
