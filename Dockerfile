# The Keras 3 stack on TensorFlow's own image; its TensorFlow stays as it is. Not built in the tests.
FROM tensorflow/tensorflow:2.21.0
WORKDIR /app
COPY requirements-keras3.txt .
RUN pip install --no-cache-dir -r requirements-keras3.txt
COPY . .
CMD ["python", "train.py", "--help"]
